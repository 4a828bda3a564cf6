"""Rotation of a log that another process holds open."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

_LARGEST_BYTES: Final = 10 << 20
_KEPT: Final = 4


def rotate(log: Path, largest_bytes: int = _LARGEST_BYTES) -> None:
    """Once a log has grown to `largest_bytes`, move what it holds to `.1`, what that held to `.2`, and so on.

    Its writer appends to the file that it has opened, so the content is copied and the file cut to
    nothing; a line that comes between the two is lost. Where the disk is full, the content is lost: the
    space is needed more.
    """
    if not log.is_file() or log.stat().st_size < largest_bytes:
        return
    with suppress(OSError):
        for number in range(_KEPT, 1, -1):
            if (older := _name(log, number - 1)).is_file():
                older.replace(_name(log, number))
        shutil.copyfile(log, _name(log, 1))
    with suppress(OSError), log.open("r+b") as file:  # read-only
        file.truncate()


def _name(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
