"""Whether the store's disk has space for a job, where the store is a folder of this machine."""

import os
import time
from pathlib import Path
from typing import Final

from anyio import CapacityLimiter, move_on_after, to_thread

from api_schemas.disk import describe_bytes
from service.errors import NoSpaceError

_FRESH_S: Final = 1.0
_PATIENCE_S: Final = 1.0
_RETRY_S: Final = 30


class DiskSpace:
    """Free space, measured once a second at most.

    Args:
        folder: of the store; None: it is no folder, and has space.
        reserve_bytes: that jobs leave free: the queue server's log often lies on the same disk.
    """

    def __init__(self, folder: Path | None, reserve_bytes: int) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._measured_at = -_FRESH_S
        self._free: int | None = None
        self._limiter = CapacityLimiter(1)  # its threads would take those of all others

    async def measure(self) -> int | None:
        """Free bytes; None where nobody knows."""
        if self._folder is not None and time.monotonic() - self._measured_at >= _FRESH_S:
            self._measured_at = time.monotonic()
            self._free = None
            with move_on_after(_PATIENCE_S):  # of a disk that hangs nobody knows
                self._free = await to_thread.run_sync(
                    _measure, self._folder, abandon_on_cancel=True, limiter=self._limiter
                )
        return self._free

    async def describe_lack(self, needed: int) -> str:
        """What is missing for so many bytes; empty if nothing is."""
        free = await self.measure()
        if free is None or needed + self._reserve_bytes <= free:
            return ""
        kept = describe_bytes(self._reserve_bytes)
        return f"{describe_bytes(free)} are free on the store's disk, of which {kept} are kept for the queue"

    async def require(self, needed: int) -> None:
        """
        Raises:
            NoSpaceError: with what the job may need and what is free.
        """
        if lack := await self.describe_lack(needed):
            raise NoSpaceError(f"the job may need {describe_bytes(needed)}: {lack}", retry_after_s=_RETRY_S)


def _measure(folder: Path) -> int | None:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None  # what cannot be measured is for the probe of the store to tell
    return disk.f_bavail * disk.f_frsize
