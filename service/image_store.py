"""The object store: finished pictures and their pyramids, and the pictures that came with requests."""

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast
from urllib.parse import unquote, urlsplit

import obstore
from anyio import CapacityLimiter, to_thread
from obstore.exceptions import GenericError
from obstore.store import LocalStore, S3Store

from service.errors import ResultDamagedError, ResultExpiredError
from service.settings import ServiceSettings

if TYPE_CHECKING:  # obstore has this name for type checkers only
    from obstore.store import S3Config

_CHUNK_BYTES: Final = 1 << 20
_PARTS_AT_ONCE: Final = 2  # of 5 MB each, in memory
_PROBE_KEY: Final = "probe"


class ImageStore:
    """Keys come from committed results and from ids that the service drew, never from a client."""

    def __init__(
        self,
        open_store: Callable[[], LocalStore | S3Store],
        folder: Path | None,
        signer: S3Store | None,
        link_lifetime_s: int,
    ) -> None:
        self._open = open_store
        self._signer = signer
        self._link_lifetime = timedelta(seconds=link_lifetime_s)
        self.folder = folder
        self._probes = CapacityLimiter(1)  # on a disk that hangs they would take all threads

    @classmethod
    def open(cls, settings: ServiceSettings) -> "ImageStore":
        """A store at `file:///folder` or `s3://bucket/prefix`; nothing is asked of it yet."""
        url = urlsplit(settings.store_url)
        if url.scheme == "file":
            folder = Path(unquote(url.path))
            return cls(lambda: _open_folder(folder), folder, None, settings.link_lifetime_s)
        signer = _open_s3(settings, settings.store_public_endpoint)
        return cls(lambda: _open_s3(settings, None), None, signer, settings.link_lifetime_s)

    @cached_property
    def _store(self) -> LocalStore | S3Store:
        """Opened with the first use that succeeds: the folder may not be there at the start."""
        return self._open()

    async def sign(self, key: str, method: str) -> str | None:
        """An address that gives this object to anyone for a while; None if the store does not sign addresses."""
        if self._signer is None:
            return None
        verb = "HEAD" if method == "HEAD" else "GET"
        return await obstore.sign_async(self._signer, verb, key, self._link_lifetime)

    async def stream(self, key: str, start: int, end: int, size: int) -> AsyncIterator[bytes]:
        """Open bytes `start` to `end` (exclusive) of an object that should have `size` bytes.

        The first of them are read before this returns, so that a store that fails at once is told as such.

        Raises:
            ResultExpiredError: it is no longer there.
            ResultDamagedError: it has another size.
        """
        await self.require(key, size)
        try:
            found = await obstore.get_async(self._store, key, options={"range": (start, end)})
            pieces = aiter(found.stream(min_chunk_size=_CHUNK_BYTES))
            first = await anext(pieces, b"")
        except FileNotFoundError as error:
            raise ResultExpiredError("the picture is no longer stored") from error
        return _chain(first, pieces)

    async def require(self, key: str, size: int) -> None:
        """Raises as `stream` does; nothing is read."""
        try:
            found = await obstore.head_async(self._store, key)
        except FileNotFoundError as error:
            raise ResultExpiredError("the picture is no longer stored") from error
        if found["size"] != size:
            why = f"the stored picture is damaged: {found['size']} bytes of {size}; make it again"
            raise ResultDamagedError(why)

    async def read(self, key: str) -> bytes | None:
        """A small object, whole; None if there is none."""
        try:
            found = await obstore.get_async(self._store, key)
        except FileNotFoundError:
            return None
        return bytes(await found.bytes_async())

    async def put(self, key: str, file: IO[bytes]) -> None:
        """Store a file as an object, all or nothing."""
        file.seek(0)
        await obstore.put_async(self._store, key, file, max_concurrency=_PARTS_AT_ONCE)

    async def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder."""
        found = await obstore.list_with_delimiter_async(  # pyright: ignore[reportUnknownMemberType]
            self._store, f"{prefix}/"
        )
        return [folder.rstrip("/").rpartition("/")[2] for folder in found["common_prefixes"]]

    async def copy_missing(self, source: str, target: str) -> int:
        """Copy each object below a folder to another folder, unless one of its name is there; answers their bytes."""
        own, there = await self._list_sizes(source), await self._list_sizes(target)
        missing = sorted(own.keys() - there.keys())
        for name in missing:
            await obstore.copy_async(self._store, f"{source}/{name}", f"{target}/{name}")
        return sum(own[name] for name in missing)

    async def _list_sizes(self, prefix: str) -> dict[str, int]:
        found = obstore.list(self._store, f"{prefix}/")  # pyright: ignore[reportUnknownMemberType]
        entries = await found.collect_async()
        return {entry["path"].removeprefix(f"{prefix}/"): entry["size"] for entry in entries}

    async def delete_folder(self, prefix: str) -> None:
        """Delete every object below a folder; nothing happens if there is none."""
        found = obstore.list(self._store, f"{prefix}/")  # pyright: ignore[reportUnknownMemberType]
        keys = [entry["path"] for entry in await found.collect_async()]
        with suppress(FileNotFoundError):  # another process deletes the same
            if keys:
                await obstore.delete_async(self._store, keys)

    async def probe(self) -> None:
        """Write something small, which leaves nothing where the store is a folder; raises what the store raises."""
        if self.folder is None:
            await obstore.put_async(self._store, _PROBE_KEY, b"")
        else:
            await to_thread.run_sync(_write_block, self.folder, abandon_on_cancel=True, limiter=self._probes)


async def _chain(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        yield piece


def _open_folder(folder: Path) -> LocalStore:
    try:
        return LocalStore(folder, mkdir=True, automatic_cleanup=True)
    except OSError as error:  # of which it makes one error or the other, by what fails
        raise GenericError(str(error)) from error


def _write_block(folder: Path) -> None:
    """A whole block: an empty file needs no space."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(4096))


def _open_s3(settings: ServiceSettings, other_endpoint: str | None) -> S3Store:
    config = settings.s3_config() | ({"endpoint": other_endpoint} if other_endpoint else {})
    url = urlsplit(settings.store_url)
    return S3Store(
        url.netloc,
        prefix=url.path.strip("/") or None,
        config=cast("S3Config", config),
        client_options={"allow_http": True, "connect_timeout": "3s", "timeout": "30s"},
        # A client is waiting: a quick 503 is better than a long timeout.
        retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=5)},
    )
