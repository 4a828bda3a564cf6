"""Tiles on their way from a GPU to the preview canvas. Nobody waits for them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.denoise import TilePredicted


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A tile, its copy in main memory, and the sign that the copy is whole; none where it was made there."""

    tile: TilePredicted
    clean: Tensor
    whole: torch.cuda.Event | None


class Arrivals:
    """To ask a GPU for a tile would drain its queue, and it would stand still until the host has more for it.

    So each tile's copy is queued behind its making, and painted when it is found to be there: usually
    one batch later.
    """

    def __init__(self) -> None:
        self._expected: deque[_Arrival] = deque()

    def expect(self, tile: TilePredicted) -> None:
        if not tile.clean.is_cuda:
            self._expected.append(_Arrival(tile, tile.clean, None))
            return
        clean = torch.empty(tile.clean.shape, dtype=tile.clean.dtype, pin_memory=True)
        clean.copy_(tile.clean, non_blocking=True)
        whole = torch.cuda.Event()
        whole.record()
        self._expected.append(_Arrival(tile, clean, whole))

    def take(self, *, wait: bool = False) -> Iterator[tuple[TilePredicted, Tensor]]:
        """Tiles that are there, in the order in which they were sung, each with its clean estimate (C, h, w)."""
        while self._expected:
            first = self._expected[0]
            if first.whole is not None and wait:
                first.whole.synchronize()
            elif first.whole is not None and not first.whole.query():
                return
            self._expected.popleft()
            yield first.tile, first.clean
