"""The object store: a local folder or S3, by URL."""

import logging
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from worker.disk_faults import WORK_FOLDER, find_disk_fault
from worker.errors import DiskFullError, ResourceError, StorageUnavailableError
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from obstore.store import S3Config

_log = logging.getLogger(__name__)
_CONCURRENT_PUTS = 8
# Short, because the runner waits and tries again itself, and says so in the job's events.
_RETRIES = 2
_RETRY_TIMEOUT = timedelta(seconds=10)
_PROBE_KEY = "probe"
_PROBE_S = 30.0  # between two probes of a store that is not a folder and answered the last


class Storage:
    """Puts, gets and deletes whole files; a put is all or nothing.

    Every method raises ResourceError when the store fails or does not answer.
    """

    def __init__(self, open_store: Callable[[], LocalStore | S3Store], folder: Path | None) -> None:
        self._open = open_store
        self._probed_at = -_PROBE_S
        self.folder = folder

    @classmethod
    def open(cls, settings: WorkerSettings) -> "Storage":
        """A store at `file:///folder` or `s3://bucket/prefix`; nothing is asked of it yet."""
        url = urlsplit(settings.store_url)
        if url.scheme == "file":
            folder = Path(unquote(url.path))
            return cls(lambda: LocalStore(folder, automatic_cleanup=True, mkdir=True), folder)
        return cls(lambda: _open_s3(url.netloc, url.path.strip("/"), settings), None)

    @cached_property
    def _store(self) -> LocalStore | S3Store:
        """Opened with the first use that succeeds: the folder may not be there at the start."""
        return self._open()

    def probe(self) -> None:
        """Write something small, which costs nothing and leaves nothing where the store is a folder."""
        if self.folder is not None:
            with _translated():
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
                    file.write(bytes(4096))
        elif time.monotonic() - self._probed_at > _PROBE_S:
            with _translated():
                obstore.put(self._store, _PROBE_KEY, b"")
            self._probed_at = time.monotonic()

    def put_file(self, key: str, path: Path, media_type: str = "application/octet-stream") -> None:
        """Store a file, a large one in parts."""
        with _translated():
            attributes = {"Content-Type": media_type} if isinstance(self._store, S3Store) else None
            obstore.put(self._store, key, path, attributes=attributes)

    def put_files(
        self,
        prefix: str,
        paths: Sequence[Path],
        folder: Path,
        media_types: dict[str, str],
        is_stopped: Callable[[], bool],
    ) -> None:
        """Store files that lie below a folder, several at a time, until `is_stopped`."""
        with ThreadPoolExecutor(_CONCURRENT_PUTS) as pool:
            puts = [
                pool.submit(
                    self.put_file,
                    f"{prefix}/{path.relative_to(folder).as_posix()}",
                    path,
                    media_types.get(path.suffix, "application/octet-stream"),
                )
                for path in paths
            ]
            for put in puts:
                if is_stopped():
                    pool.shutdown(wait=False, cancel_futures=True)
                    return
                put.result()

    def get_file(self, key: str, path: Path) -> bool:
        """Fetch an object into a file; False if there is none."""
        with _translated():
            try:
                with path.open("wb") as file:
                    for part in obstore.get(self._store, key):
                        file.write(part)
            except FileNotFoundError:
                return False
            except OSError as error:  # the store's own errors are others
                raise find_disk_fault(error, WORK_FOLDER) or error from error
        return True

    def list_keys(self, prefix: str) -> list[str]:
        """All keys below a folder."""
        with _translated():
            batches = obstore.list(self._store, f"{prefix}/")  # pyright: ignore[reportUnknownMemberType]
            return [entry["path"] for batch in batches for entry in batch]

    def delete(self, keys: list[str]) -> None:
        """Delete objects, if they are still there."""
        for key in keys:
            with _translated():
                try:
                    obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue


def _open_s3(bucket: str, prefix: str, settings: WorkerSettings) -> S3Store:
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=cast("S3Config", settings.s3_config()),
        client_options={"allow_http": True, "connect_timeout": "5s", "timeout": "60s"},
        retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIMEOUT},
    )


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        _log.warning("object store: %s", str(error).partition("\n")[0])
        raise _name(error) from error


def _name(error: Exception) -> ResourceError:
    """The message may hold paths, so it is logged and not passed on."""
    fault = find_disk_fault(error, "the object store")
    if isinstance(fault, DiskFullError):
        return fault
    return StorageUnavailableError(str(fault or "the object store does not answer"))
