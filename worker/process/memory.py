"""How much memory a device has free, and the peak that some work takes of it."""

import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from worker.engine.memory import measure_main_memory
from worker.errors import DeviceRefusedError

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a device, in bytes, counting all processes."""

    device: str
    free: int
    total: int


def find_device(name: str) -> torch.device:
    """The device with a name of `parse_devices`.

    Raises:
        DeviceRefusedError: it does not exist; the message says which do.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and int(name.removeprefix("cuda:")) >= torch.cuda.device_count():
        raise DeviceRefusedError(f"devices: there is no {name}; this machine has {_list_devices()}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceRefusedError(f"devices: there is no mps; this machine has {_list_devices()}")
    return torch.device(name)


def _list_devices() -> str:
    return ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])


def measure_device_memory(device: torch.device) -> DeviceMemory:
    """Free memory counts what PyTorch has reserved in this process and does not use."""
    if device.type != "cuda":
        memory = measure_main_memory()
        return DeviceMemory(str(device), memory.free, memory.total)
    free, total = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return DeviceMemory(str(device), free + idle, total)


def require_device_memory(available: DeviceMemory, needed_bytes: int, what: str) -> None:
    """
    Raises:
        DeviceRefusedError: the device has less free memory than that.
    """
    if needed_bytes > available.free:
        raise DeviceRefusedError(
            f"devices: {available.device} has {available.free / _GIB:.1f} of {available.total / _GIB:.1f} GiB free, and {what} "
            f"needs about {needed_bytes / _GIB:.1f} GiB; stop what else uses the device, or choose another"
        )


class PeakMemory:
    """The highest memory since it was made, or since the last `restart`.

    On a GPU PyTorch's own exact figure. In main memory the high-water mark of the process less what it
    had at the beginning: too low by freed memory that the allocator had kept, and, where the mark cannot
    be lowered (elsewhere than on Linux), too high if loading took more than the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self.restart()

    def restart(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            _lower_high_water_mark()
            self._before = psutil.Process().memory_info().rss

    def measure(self) -> int:
        """Bytes above the beginning."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(_read_high_water_mark() - self._before, 0)


def _lower_high_water_mark() -> None:
    """Set it to what the process has now, as proc_pid_clear_refs(5) says."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _read_high_water_mark() -> int:
    """Bytes of this process alone.

    On Linux getrusage(2) also counts what the process was before it started its program: a worker
    that a large process began would have that one's mark.
    """
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) << 10
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark << 10
