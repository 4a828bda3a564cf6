"""Which kinds of file carry provenance, told by their first bytes and not by their names."""

from pathlib import Path
from stat import S_ISREG
from typing import Final

from provenance.errors import UnreadableFileError

_LENGTH: Final = 12
_STARTS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),  # BigTIFF
    (b"MM\0+", "image/tiff"),
)


def find_media_type(path: Path) -> str:
    """
    Raises:
        UnreadableFileError: it is another kind of file, or cannot be read.
    """
    try:
        if not S_ISREG(path.stat().st_mode):
            raise UnreadableFileError(f"{path} is no regular file")
        with path.open("rb") as file:
            start = file.read(_LENGTH)
    except OSError as error:
        raise UnreadableFileError(
            f"{path} cannot be read: {(error.strerror or 'unknown').lower()}"
        ) from error
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "image/webp"
    for magic, media_type in _STARTS:
        if start.startswith(magic):
            return media_type
    raise UnreadableFileError(f"{path} is no picture that is known here; allowed: PNG, JPEG, WebP, TIFF")
