"""Which errors are the machine's, and what clients may read of any error: never a path."""

import errno
import os
import re

from worker.errors import DiskFullError, DiskUnwritableError, ResourceError

WORK_FOLDER = "the work folder"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_PATH = re.compile(r"(?<![\w./:])/(?:[^\s'\"/:;,]+/)+")  # all but the last name


def find_disk_fault(error: BaseException, place: str) -> ResourceError | None:
    """What a failed write says about the disk; None if the disk is not to blame.

    Args:
        place: what cannot be written, for the message.
    """
    number = error.errno if isinstance(error, OSError) and error.errno else _read_number(str(error))
    if number in _FULL:
        return DiskFullError(f"no space left in {place}")
    if number in _UNWRITABLE:
        return DiskUnwritableError(f"{place} cannot be written: {os.strerror(number).lower()}")
    return None


def blame_work_folder(error: OSError) -> ResourceError:
    """The same of the work folder, of whatever kind the error is: without it no job can run."""
    message = f"{WORK_FOLDER} cannot be written: {(error.strerror or 'no reason given').lower()}"
    return find_disk_fault(error, WORK_FOLDER) or DiskUnwritableError(message)


def _read_number(text: str) -> int | None:
    """safetensors, object stores and libvips pass on the system's message only."""
    return next((number for number in _FULL + _UNWRITABLE if os.strerror(number) in text), None)


def hide_paths(text: str) -> str:
    """The text with only the last name of each absolute path.

    >>> hide_paths("OSError: '/srv/scratch/a/image.tif' is gone")
    "OSError: 'image.tif' is gone"
    """
    return _PATH.sub("", text)
