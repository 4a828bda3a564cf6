"""What cannot be written on a disk, and how much is free there."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from chorale.errors import UnwritableError


@contextmanager
def writing(path: Path, *sizes: int) -> Generator[None]:
    """
    Args:
        path: what the block writes, or makes.
        sizes: bytes of each file and folder that is new, where known.

    Raises:
        UnwritableError: it cannot.
    """
    try:
        yield
    except FileExistsError as error:
        raise UnwritableError(f"{path} cannot be written: it is no folder") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnwritableError(
            f"{path} cannot be written: no folder can be made there; --data names another place"
        ) from error
    except OSError as error:
        raise UnwritableError(
            f"{path} cannot be written: {error.strerror or error}{describe_space(path, *sizes)}"
        ) from error


def require_space(path: Path, size: int) -> None:
    """
    Raises:
        UnwritableError: fewer bytes are free on its disk.
    """
    disk = _look_at(path)
    if disk is not None and disk.f_bavail * disk.f_frsize < size:
        raise UnwritableError(
            f"{path} cannot be written: too little space{describe_space(path, size)}; make space there, or choose"
            " another place"
        )


def _look_at(path: Path) -> os.statvfs_result | None:
    """The disk of a path, which need not exist."""
    try:
        return os.statvfs(next(each for each in (path, *path.parents) if each.exists()))
    except OSError:
        return None


def describe_space(path: Path, *sizes: int) -> str:
    """What is free on the disk of a path, which need not exist, and what files of these sizes take there."""
    disk = _look_at(path)
    if disk is None:
        return ""
    free, needed = disk.f_bavail * disk.f_frsize, sum(-(-size // disk.f_frsize) for size in sizes)
    inodes = "no inodes and " if disk.f_files and not disk.f_favail else ""
    asked = f", {needed * disk.f_frsize} are needed" if needed else ""
    return f"; {inodes}{free} bytes are free on its disk{asked}"
