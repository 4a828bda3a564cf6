"""A download that can be interrupted and resumed."""

import hashlib
import os
import uuid
from http import HTTPStatus
from pathlib import Path

import httpx

from api_schemas.events import Result
from chorale.errors import DownloadError


class PartFile:
    """The part of a picture that was received, beside its final path.

    The name holds the picture's checksum, so that parts of two pictures are never joined.
    """

    def __init__(self, path: Path, result: Result) -> None:
        self._path = path
        self._result = result
        self._part = path.with_name(_name_part(path, result.sha256))
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def size_bytes(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    @property
    def is_complete(self) -> bool:
        return self._part.exists() and self.size_bytes >= self._result.size_bytes

    def headers(self) -> dict[str, str]:
        """Headers for the missing bytes, without content encoding."""
        range_header = {"Range": f"bytes={self.size_bytes}-"} if self.size_bytes else {}
        return {"Accept-Encoding": "identity", **range_header}

    def prepare(self, response: httpx.Response) -> None:
        """Start over if the server answers with the whole picture."""
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            self._part.write_bytes(b"")

    def append(self, chunk: bytes) -> None:
        with self._part.open("ab") as file:
            file.write(chunk)

    def finish(self) -> Path:
        """Move the picture to its final path.

        Raises:
            DownloadError: it is not the picture that the job made; what arrived is removed.
        """
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self._result.sha256:
            size = self.size_bytes
            self._part.unlink()
            raise DownloadError(
                f"sha256 of the {size} bytes that arrived is {digest}, the job's picture has "
                f"{self._result.size_bytes} bytes with {self._result.sha256}"
            )
        os.replace(self._part, self._path)
        return self._path


def try_place(path: Path) -> None:
    """Make a part of a picture and remove it again; folders that are missing are not made.

    Raises:
        OSError: it cannot be made.
    """
    folder = next(each for each in path.parents if each.exists())
    part = folder / _name_part(path, uuid.uuid4().hex)
    part.touch(exist_ok=False)
    part.unlink()


def _name_part(path: Path, digest: str) -> str:
    return f".{path.name}.{digest[:16]}.part"
