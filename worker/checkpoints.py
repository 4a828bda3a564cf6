"""Checkpoints in the object store, where any worker finds them."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from api_schemas.wire import checkpoint_folder
from worker.errors import ResourceError
from worker.process.protocol import Kept
from worker.storage import Storage

_log = logging.getLogger(__name__)


class CheckpointStore:
    """Uploads in the background, newest first, one at a time; a skipped one is no loss.

    A picture is a pure function of its request, so checkpoints of all attempts are equally good.
    """

    def __init__(self, storage: Storage, job_id: str) -> None:
        self._storage = storage
        self._prefix = checkpoint_folder(job_id)
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._waiting: tuple[str, Path] | None = None
        self._newest_here: tuple[int, Path] | None = None

    def keep(self, kept: Kept, attempt: int) -> None:
        """Take over a checkpoint file."""
        if self._newest_here is not None and self._newest_here[1] != kept.path:
            self._drop_here(self._newest_here[1])
        self._newest_here = (kept.step, kept.path)
        self._waiting = (f"{self._prefix}/{kept.step:04d}-{attempt:04d}.safetensors", kept.path)
        self.pump()

    def pump(self) -> bool:
        """Start what waits, if nothing runs; whether something runs now."""
        if self._running is not None and self._running.done():
            self._running = None
        if self._running is None and self._waiting is not None:
            self._running = self._pool.submit(self._upload, *self._waiting)
            self._waiting = None
        return self._running is not None

    def find_newest(self, folder: Path) -> tuple[int, Path] | None:
        """The most advanced checkpoint, fetched into `folder`.

        Raises:
            ResourceError: the store does not answer.
        """
        if self._newest_here is not None and self._newest_here[1].exists():
            return self._newest_here
        for key in sorted(self._storage.list_keys(self._prefix), reverse=True):
            path = folder / key.rpartition("/")[2]
            if self._storage.get_file(key, path):
                return int(path.name.partition("-")[0]), path
        return None

    def delete_all(self) -> None:
        self._storage.delete(self._storage.list_keys(self._prefix))

    def _upload(self, key: str, path: Path) -> None:
        try:
            self._storage.put_file(key, path)
            self._storage.delete([old for old in self._storage.list_keys(self._prefix) if old < key])
        except (ResourceError, FileNotFoundError):
            _log.warning("checkpoint %s was not stored", key)

    def _drop_here(self, path: Path) -> None:
        # An upload that still reads the file keeps its own handle, or finds none and is skipped.
        path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
