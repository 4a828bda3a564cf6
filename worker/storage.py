"""The object store: a local folder or S3, by URL."""

import errno
import logging
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from worker.errors import DiskFullError, ResourceError, StorageUnavailableError
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from obstore.store import S3Config

_log = logging.getLogger(__name__)
_CONCURRENT_PUTS = 8
# Short, because the runner waits and tries again itself, and says so in the job's events.
_RETRIES = 2
_RETRY_TIMEOUT = timedelta(seconds=10)


class Storage:
    """Puts, gets and deletes whole files; a put is all or nothing.

    Every method raises ResourceError when the store fails or does not answer.
    """

    def __init__(self, store: LocalStore | S3Store) -> None:
        self._store = store

    @classmethod
    def open(cls, settings: WorkerSettings) -> "Storage":
        """Open `file:///folder` or `s3://bucket/prefix`, without a request to it."""
        url = urlsplit(settings.store_url)
        match url.scheme:
            case "file":
                with _translated():
                    return cls(LocalStore(Path(unquote(url.path)), automatic_cleanup=True, mkdir=True))
            case _:
                return cls(_open_s3(url.netloc, url.path.strip("/"), settings))

    def put_file(self, key: str, path: Path, media_type: str = "application/octet-stream") -> None:
        """Store a file, a large one in parts."""
        attributes = {"Content-Type": media_type} if isinstance(self._store, S3Store) else None
        with _translated():
            obstore.put(self._store, key, path, attributes=attributes)

    def put_folder(
        self, prefix: str, folder: Path, media_types: dict[str, str], is_stopped: Callable[[], bool]
    ) -> None:
        """Store every file below a folder, several at a time, until `is_stopped`."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
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
        _log.warning("object store: %s", error)
        raise _name(error) from error


def _name(error: Exception) -> ResourceError:
    """Only the message tells that space is short; it may hold paths, so it is logged and not passed on."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in str(error):
        return DiskFullError("no space left in the object store")
    return StorageUnavailableError("the object store does not answer")
