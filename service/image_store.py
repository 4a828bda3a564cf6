"""The object store: finished pictures and their pyramids, and the pictures that came with requests."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import LocalStore, S3Store

from service.errors import ResultExpiredError
from service.settings import ServiceSettings

if TYPE_CHECKING:  # obstore has this name for type checkers only
    from obstore.store import S3Config

_CHUNK_BYTES: Final = 1 << 20
_PARTS_AT_ONCE: Final = 2  # of 5 MB each, in memory
_PROBE_KEY: Final = "probe-that-need-not-exist"


class ImageStore:
    """Keys come from committed results and from ids that the service drew, never from a client."""

    def __init__(self, store: LocalStore | S3Store, signer: S3Store | None, link_lifetime_s: int) -> None:
        self._store = store
        self._signer = signer
        self._link_lifetime = timedelta(seconds=link_lifetime_s)

    @classmethod
    def open(cls, settings: ServiceSettings) -> "ImageStore":
        """Open `file:///folder` or `s3://bucket/prefix`. Nothing is sent yet."""
        url = urlsplit(settings.store_url)
        if url.scheme == "file":
            folder = LocalStore(Path(unquote(url.path)), mkdir=True, automatic_cleanup=True)
            return cls(folder, None, settings.link_lifetime_s)
        signer = _open_s3(settings, settings.store_public_endpoint)
        return cls(_open_s3(settings, None), signer, settings.link_lifetime_s)

    async def sign(self, key: str, method: str) -> str | None:
        """An address that gives this object to anyone for a while; None if the store does not sign addresses."""
        if self._signer is None:
            return None
        verb = "HEAD" if method == "HEAD" else "GET"
        return await obstore.sign_async(self._signer, verb, key, self._link_lifetime)

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Open bytes `start` to `end` (exclusive) of an object.

        Raises:
            ResultExpiredError: it is no longer there.
        """
        try:
            found = await obstore.get_async(self._store, key, options={"range": (start, end)})
        except FileNotFoundError as error:
            raise ResultExpiredError("the picture is no longer stored") from error
        return aiter(found.stream(min_chunk_size=_CHUNK_BYTES))

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

    async def delete_folder(self, prefix: str) -> None:
        """Delete every object below a folder; nothing happens if there is none."""
        found = obstore.list(self._store, f"{prefix}/")  # pyright: ignore[reportUnknownMemberType]
        keys = [entry["path"] for entry in await found.collect_async()]
        with suppress(FileNotFoundError):  # another process deletes the same
            if keys:
                await obstore.delete_async(self._store, keys)

    async def probe(self) -> None:
        """Return if the store answers; raises what the store raises."""
        try:
            await obstore.head_async(self._store, _PROBE_KEY)
        except FileNotFoundError:
            return


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
