"""The cost of communication between ranks: a group that records when the device gathers, and what was gathered."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.ranks import Group


@dataclass(slots=True)
class Heard:
    """Since it was asked last.

    Attributes:
        seconds: that the device spent in gathering, waiting for slower ranks included.
        places: of predictions in all ranks' batches, filled up or not.
    """

    seconds: float
    places: int


class Listening:
    """Another group, with a watch."""

    def __init__(self, group: Group, device: torch.device) -> None:
        self._group, self._device = group, device
        self.rank, self.size = group.rank, group.size
        self._marks: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._places = 0

    def meet(self, *, fine: bool = True) -> bool:
        return self._group.meet(fine=fine)

    def leave(self) -> None:
        self._group.leave()

    def gather(self, own: Tensor) -> list[Tensor]:
        began = self._mark()
        heard = self._group.gather(own)
        self._marks.append((began, self._mark()))
        self._places += len(own) * self.size
        return heard

    def take(self) -> Heard:
        """What was heard; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        heard = Heard(sum(_span(*each) for each in self._marks), self._places)
        self._marks.clear()
        self._places = 0
        return heard

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
