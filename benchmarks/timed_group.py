"""The cost of communication between ranks: a group that records when the device gathers, and what was gathered."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.ranks import Group


@dataclass(slots=True)
class GatherCost:
    """What gathering took since it was asked last.

    Attributes:
        seconds: that the device spent in gathering, waiting for slower ranks included.
        places: of predictions in all ranks' batches, filled up or not.
    """

    seconds: float
    places: int


class TimedGroup:
    """Another group, whose gathering is timed."""

    def __init__(self, group: Group, device: torch.device) -> None:
        self._group, self._device = group, device
        self.rank, self.size = group.rank, group.size
        self._marks: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._places = 0

    def barrier(self, *, ok: bool = True) -> bool:
        return self._group.barrier(ok=ok)

    def abort(self) -> None:
        self._group.abort()

    def all_gather(self, own: Tensor) -> list[Tensor]:
        began = self._mark()
        gathered = self._group.all_gather(own)
        self._marks.append((began, self._mark()))
        self._places += len(own) * self.size
        return gathered

    def take(self) -> GatherCost:
        """The cost since the last call; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        cost = GatherCost(sum(_span(*each) for each in self._marks), self._places)
        self._marks.clear()
        self._places = 0
        return cost

    def _mark(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _span(began: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    if isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
        return began.elapsed_time(ended) / 1000
    assert isinstance(began, float)
    assert isinstance(ended, float)
    return ended - began
