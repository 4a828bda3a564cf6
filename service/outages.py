"""What an error of the queue server or the object store means, in words without paths or addresses."""

import errno
import os
from dataclasses import dataclass

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from api_schemas.answers import Reach

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True, slots=True)
class Outage:
    """How far a part can be used, and why no further."""

    reach: Reach
    message: str


def explain_queue(error: Exception) -> Outage:
    """Of the queue server, which refuses to write while its disk or memory is full, but reads."""
    match error:
        case OutOfMemoryError():
            return Outage("full", "the queue refuses to write: the memory of its server is full")
        case ReadOnlyError():
            return Outage("unwritable", "the queue refuses to write: its server is a replica")
        case BusyLoadingError():
            return Outage("unreachable", "the queue cannot be reached yet: its server loads its data")
        case AuthenticationError() | NoPermissionError():
            return Outage("unreachable", "the queue refuses the service's password or rights")
        case _ if "MISCONF" in str(error):
            return _explain_misconf(str(error))
        case ResponseError() if "WRONGTYPE" in str(error):
            return Outage("unwritable", "the queue holds something of another type than it should be")
        case ResponseError():
            return Outage("unwritable", "the queue refuses a command; the service's log says which")
        case _:
            return Outage("unreachable", "the queue cannot be reached")


def _explain_misconf(text: str) -> Outage:
    """The server says this to every write, and to PING, while it cannot write its own log."""
    if _names(text, _FULL):
        return Outage("full", "the queue refuses to write: the disk of its server is full")
    return Outage("unwritable", "the queue refuses to write: its server cannot write to its disk")


def explain_store(error: Exception) -> Outage:
    """Of the object store; of a folder, the system's message tells."""
    text = f"{error} {os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ''}"
    if _names(text, _FULL):
        return Outage("full", "the object store is full")
    if _names(text, _UNWRITABLE):
        return Outage("unwritable", "the object store cannot be written")
    return Outage("unreachable", "the object store cannot be reached")


def is_disk_full(error: OSError) -> bool:
    return error.errno in _FULL


def _names(text: str, numbers: tuple[int, ...]) -> bool:
    return any(os.strerror(number) in text for number in numbers)
