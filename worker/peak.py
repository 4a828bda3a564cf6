"""How much memory something takes at the most."""

import resource
import sys

import psutil
import torch


class Peak:
    """Counts from its making, or from the last `restart`.

    A GPU's figure is PyTorch's own and exact. Main memory's is the process' high-water mark over what it
    held at the beginning: too high where loading took more than what came after, too low by what the
    allocator had kept of what was gone by then.
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
            self._before = psutil.Process().memory_info().rss

    def rise(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(_read_highest() - self._before, 0)


def _read_highest() -> int:
    """psutil knows no high-water mark."""
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark << 10
