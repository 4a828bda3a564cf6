"""What is taken away from a damaged log: kept beside it, and nothing is left of a try that a full disk ends."""

import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from chorale.disk_space import writing


@contextmanager
def keeping(folder: Path, size: int) -> Generator[Path]:
    """A new folder for it, which is gone again if the block put nothing there.

    Args:
        size: bytes that the block writes.

    Raises:
        UnwritableError: there is no space.
    """
    kept = folder / time.strftime("damaged-%Y%m%d-%H%M%S")
    while kept.exists():
        kept = kept.with_name(f"{kept.name}x")
    with writing(folder, 1, size):
        kept.mkdir(mode=0o700)
        try:
            yield kept
        finally:
            with suppress(OSError):  # something is in it
                kept.rmdir()


@contextmanager
def undone(path: Path) -> Generator[None]:
    """A file that is written in the block is removed if the block fails."""
    try:
        yield
    except OSError:
        path.unlink(missing_ok=True)
        raise


def cut_off(path: Path, end: int, folder: Path) -> None:
    """End a file at this byte; only what comes after is kept, for a full disk has no space for the whole file.

    Raises:
        UnwritableError: not even for that.
    """
    with keeping(folder, path.stat().st_size - end) as kept:
        copy = kept / f"{path.name}.from-{end}"
        with undone(copy):
            _copy_end(path, end, copy)
            os.truncate(path, end)


def _copy_end(path: Path, start: int, target: Path) -> None:
    with path.open("rb") as file, target.open("xb") as copy:
        file.seek(start)
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())  # before it is cut off
