"""What C libraries keep of jobs that have ended, which Python does not see."""

import ctypes
from typing import Final

import pyvips

# malloc.h of glibc
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
_SPARE_BYTES: Final = 256 << 20
_libc: Final = ctypes.CDLL(None)


def keep_little() -> None:
    """Have them keep little in this process; call it before there are threads."""
    _limit_arenas()
    # Its operations are asked for once, since each job has files of its own: kept, the last hundred hold files
    # open that are deleted, 64 MiB for a mask of 8192 px.
    pyvips.cache_set_max(0)


def keep_spare() -> None:
    """Have glibc keep up to 256 MiB that are free, and not give large pieces back one by one; until `give_back`. mallopt(3)

    Otherwise each large tensor is new memory, which the system clears page by page: a decode tile of 512 px then
    had 61,000 page faults, and took a third longer in float32.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES)
        _libc.mallopt(_M_TOP_PAD, _SPARE_BYTES)
        _libc.mallopt(_M_MMAP_THRESHOLD, _SPARE_BYTES)


def give_back() -> None:
    """Give the system what is free; 1 ms. The end of a heap otherwise stays, up to 64 MiB after a large picture."""
    if hasattr(_libc, "malloc_trim"):  # glibc's: malloc_trim(3)
        _libc.malloc_trim(0)


def _limit_arenas() -> None:
    """Have all threads share two of glibc's heaps; other C libraries have no such call. mallopt(3)

    glibc makes eight for each core, and each keeps the most that pictures ever took of it: sixteen held 155 MiB
    after 7 minutes of mixed pictures, of which 13 were in use, and went on growing.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)
