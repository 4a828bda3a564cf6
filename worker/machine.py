"""Whether this machine can run jobs: its work folder and the store can be written, and have space; what is signed can be."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Event

from api_schemas.disk import DiskNeed, describe_bytes
from worker.disk_faults import WORK_FOLDER, blame_work_folder
from worker.errors import DiskFullError, DiskUnwritableError, ResourceError
from worker.marking import UNMARKED, Marking
from worker.storage import Storage

_STORE = "the object store"
_PROBE = bytes(4096)  # a whole block: an empty file needs no space
_SHORTEST_PAUSE_S = 1.0  # after a job was given back, even if the next check finds nothing
_TICK_S = 0.05
_PATIENCE_S = 15.0
_log = logging.getLogger(__name__)


class Machine:
    """Checks what every job needs of this machine. `fault` says why no job is taken now.

    Args:
        work_dir: scratch folder of the worker.
        reserve_bytes: that jobs leave free on each disk.
        marking: of the pictures that are made here.
    """

    def __init__(
        self, work_dir: Path, storage: Storage, reserve_bytes: int, marking: Marking = UNMARKED
    ) -> None:
        self._work_dir = work_dir
        self._storage = storage
        self._reserve_bytes = reserve_bytes
        self._marking = marking
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="machine")
        self._paused_until = 0.0
        self.fault: ResourceError | None = None

    def note(self, fault: ResourceError | None) -> None:
        """Say from now on that this is why no job can go on here; None: jobs can."""
        if fault is None and self.fault is not None:
            _log.warning("takes jobs again")
        elif fault is not None and (self.fault is None or fault.code != self.fault.code):
            _log.warning("takes no jobs: %s", fault)
        self.fault = fault

    def pause(self, fault: ResourceError) -> None:
        """Take no jobs for a moment, and then until a check finds nothing."""
        self.note(fault)
        self._paused_until = time.monotonic() + _SHORTEST_PAUSE_S

    def is_fit(self, need: DiskNeed | None, stop: Event, meanwhile: Callable[[], None]) -> bool:
        """Whether a job may be taken now; a disk that hangs does not keep `meanwhile` from being called.

        Args:
            need: of the job that would be taken.
        """
        check = self._pool.submit(self.find_fault, need)
        began = time.monotonic()
        while not wait([check], _TICK_S).done:
            meanwhile()
            if stop.is_set():
                return False
            if time.monotonic() - began > _PATIENCE_S:
                self.note(DiskUnwritableError(f"{WORK_FOLDER} or {_STORE} does not answer"))
        if time.monotonic() >= self._paused_until:
            self.note(check.result())
        return self.fault is None

    def find_fault(self, need: DiskNeed | None, own: Path | None = None) -> ResourceError | None:
        """What is wrong with this machine, from the smallest write to space for a whole job that it can hold.

        Args:
            own: folder of that job, whose files will go or be written again.
        """
        try:
            self._probe_work_folder()
            self._storage.probe()
            self._require_space(need or DiskNeed(0, 0), own)
            if need and own is None and (lack := self._find_lack_of_files(need)):
                return lack
        except ResourceError as fault:
            lack = self._find_lack_of_files(DiskNeed(0, 0)) if isinstance(fault, DiskFullError) else None
            return lack or fault
        except OSError as error:
            return DiskUnwritableError(f"a disk cannot be measured: {error.strerror}")
        return self._marking.find_fault()

    def find_misfit(self, need: DiskNeed) -> str | None:
        """Why a job can never run here, however much is deleted; None if it can, or nobody knows."""
        with suppress(OSError):
            for folder, place, bytes_needed in self._list_disks(need):
                disk = os.statvfs(folder)
                if not self._fits_into(disk, bytes_needed):
                    size = disk.f_blocks * disk.f_frsize
                    lack = self._describe_lack(size, f"are the whole disk of {place}")
                    return f"the job may need {describe_bytes(bytes_needed)}, and {lack}"
        return None

    def _probe_work_folder(self) -> None:
        try:
            self._work_dir.mkdir(parents=True, exist_ok=True)  # those who clean /tmp may have removed it
            with tempfile.TemporaryFile(dir=self._work_dir, buffering=0) as file:
                file.write(_PROBE)
        except OSError as error:
            raise blame_work_folder(error) from error

    def _find_lack_of_files(self, need: DiskNeed) -> DiskFullError | None:
        """A disk may have space and still take no more files (inodes); some have no limit and tell 0."""
        with suppress(OSError):
            for folder, place, shares in self._list_disks(DiskNeed(1, 1)):
                disk, files = os.statvfs(folder), max(need.files * shares, 1)
                if disk.f_favail < files <= disk.f_files:
                    job = f"the next job may need {files} files, and " if need.files else ""
                    return DiskFullError(f"{job}{disk.f_favail} inodes are free on the disk of {place}")
        return None

    def _require_space(self, need: DiskNeed, own: Path | None) -> None:
        spare = _count_bytes(own) if own else 0
        for folder, place, asked in self._list_disks(need):
            disk = os.statvfs(folder)
            # A job that is larger than the disk has nothing to wait for; it is taken, and fails.
            bytes_needed = asked if self._fits_into(disk, asked) else 0
            free = disk.f_bavail * disk.f_frsize + (spare if folder == self._work_dir else 0)
            if bytes_needed + self._reserve_bytes > free:
                job = f"the next job may need {describe_bytes(bytes_needed)}, and " if bytes_needed else ""
                raise DiskFullError(job + self._describe_lack(free, f"are free on the disk of {place}"))

    def _fits_into(self, disk: os.statvfs_result, bytes_needed: int) -> bool:
        return bytes_needed + self._reserve_bytes <= disk.f_blocks * disk.f_frsize

    def _list_disks(self, need: DiskNeed) -> Iterable[tuple[Path, str, int]]:
        """Each disk once, as one of its folders, what it holds, and what the job writes to it."""
        store = self._storage.folder
        if store is None:
            return [(self._work_dir, WORK_FOLDER, need.work_bytes)]
        if self._work_dir.stat().st_dev == store.stat().st_dev:
            return [(self._work_dir, f"{WORK_FOLDER} and {_STORE}", need.work_bytes + need.store_bytes)]
        return [(self._work_dir, WORK_FOLDER, need.work_bytes), (store, _STORE, need.store_bytes)]

    def _describe_lack(self, there: int, where: str) -> str:
        kept = describe_bytes(self._reserve_bytes)
        return f"{describe_bytes(there)} {where}, of which {kept} are kept for the queue server"


def _count_bytes(folder: Path) -> int:
    """Space that the files below a folder take; some may go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
