"""Checkpoints in the object store, where any worker finds them."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from api_schemas.wire import checkpoint_folder
from worker.checksums import verify_checksum
from worker.errors import DamagedFileError, ResourceError
from worker.process.protocol import CheckpointWritten
from worker.storage import Storage

_KEPT = 2  # in the store: if the newest is damaged, the other costs less time than to start over
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a job goes on.

    Args:
        step: steps that are done.
        path: of their checkpoint; None: from the first step on.
        damaged: steps of the checkpoints that were found damaged.
    """

    step: int = 0
    path: Path | None = None
    damaged: tuple[int, ...] = ()


class CheckpointStore:
    """Uploads checkpoints in the background, one at a time, and skips those that a newer one replaces.

    A picture is a pure function of its request, so a checkpoint of any attempt will do.
    """

    def __init__(self, storage: Storage, job_id: str) -> None:
        self._storage = storage
        self._prefix = checkpoint_folder(job_id)
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._next: tuple[str, Path] | None = None
        self._newest: tuple[int, Path] | None = None  # on this machine

    def add(self, written: CheckpointWritten, attempt: int) -> None:
        """Take over a checkpoint file."""
        if self._newest is not None and self._newest[1] != written.path:
            # An upload that still reads the file has it open, or finds none and is skipped.
            self._newest[1].unlink(missing_ok=True)
        self._newest = (written.step, written.path)
        self._next = (f"{self._prefix}/{written.step:04d}-{attempt:04d}.safetensors", written.path)
        self.upload_next()

    def upload_next(self) -> bool:
        """Start the next upload unless one is running; whether one is running now."""
        if self._running is not None and self._running.done():
            self._running = None
        if self._running is None and self._next is not None:
            self._running = self._pool.submit(self._upload, *self._next)
            self._next = None
        return self._running is not None

    def find_newest(self, folder: Path) -> Beginning:
        """The checkpoint with the most steps that is not damaged, fetched into `folder`.

        Damaged ones are deleted: they would be found again at every attempt.

        Raises:
            ResourceError: the store does not answer.
        """
        damaged: list[int] = []
        for step, path, key in self._fetch(folder):
            try:
                verify_checksum(path)
                return Beginning(step, path, tuple(damaged))
            except FileNotFoundError:
                continue
            except (DamagedFileError, OSError) as error:
                _log.warning("checkpoint after step %d is not used: %s", step, error)
                damaged.append(step)
                path.unlink(missing_ok=True)
                self._storage.delete([key] if key else [])
        return Beginning(damaged=tuple(damaged))

    def _fetch(self, folder: Path) -> Iterator[tuple[int, Path, str | None]]:
        """Step, file and key of the newest on this machine, then of those in the store, newest first."""
        if self._newest is not None:
            yield *self._newest, None
        for key in sorted(self._storage.list_keys(self._prefix), reverse=True):
            path = folder / key.rpartition("/")[2]
            if self._storage.get_file(key, path):
                yield int(path.name.partition("-")[0]), path, key

    def delete_all(self) -> None:
        """Delete all checkpoints of the job, also one that is being uploaded.

        Raises:
            ResourceError: the store does not answer.
        """
        self._next = None
        if self._running is not None:
            wait([self._running])
        self._storage.delete(self._storage.list_keys(self._prefix))

    def _upload(self, key: str, path: Path) -> None:
        try:
            self._storage.put_file(key, path)
            older = sorted(old for old in self._storage.list_keys(self._prefix) if old < key)
            self._storage.delete(older[: 1 - _KEPT])
        except (ResourceError, FileNotFoundError):
            _log.warning("checkpoint %s was not stored", key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
