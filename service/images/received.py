"""Pictures of requests, on disk: in memory, a few dozens of them would be more than the process may hold."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class ReceivedPicture:
    """A file as it was sent, not yet decoded.

    Args:
        marks_by_alpha: of a mask: what is transparent counts as white, and all else as black; it must have the picture's size.
    """

    file: BinaryIO
    size_bytes: int
    sha256: str
    marks_by_alpha: bool = False


def open_scratch(folder: Path) -> BinaryIO:
    """A file without a name, which ends with the process at the latest.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return TemporaryFile(dir=folder)
