"""Tiles of a half-decoded canvas, held in memory while it lasts and in files after that."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from worker.engine.grid import Tile


@dataclass(frozen=True, slots=True)
class Activation:
    """What one decode tile looks like between two operations.

    Args:
        value: (1, C, h, w), halo included.
        core: the owned pixels within `value`.
        aside: what the last `Fork` set aside, at most one at a time.
    """

    value: Tensor
    core: Tile
    aside: Tensor | None = None

    @property
    def owned(self) -> Tensor:
        return self.core.slice(self.value)

    @property
    def size_bytes(self) -> int:
        return self.value.nbytes + (0 if self.aside is None else self.aside.nbytes)

    def enlarged(self, value: Tensor, scale: int) -> "Activation":
        return replace(self, value=value, core=self.core.scaled(scale))

    def forked(self, aside: Tensor) -> "Activation":
        return replace(self, aside=aside)

    def joined(self, divisor: float) -> "Activation":
        assert self.aside is not None
        return replace(self, value=(self.value + self.aside) / divisor, aside=None)

    def trimmed(self, halo: int) -> "Activation":
        """The same with at most `halo` pixels around the core."""
        top, left = max(self.core.top - halo, 0), max(self.core.left - halo, 0)
        bottom, right = self.core.top + self.core.height + halo, self.core.left + self.core.width + halo
        core = replace(self.core, top=self.core.top - top, left=self.core.left - left)
        return replace(self, value=self.value[..., top:bottom, left:right], core=core)


class Held:
    """A list of activations, of which about `memory_bytes` stay in memory."""

    def __init__(self, memory_bytes: int, spill_dir: Path) -> None:
        self._free = memory_bytes
        self._spill_dir = spill_dir
        self._kept: dict[int, Activation] = {}

    def put(self, index: int, activation: Activation) -> None:
        if activation.size_bytes <= self._free:
            self._kept[index] = activation
            self._free -= activation.size_bytes
        else:
            torch.save((activation.value, activation.core, activation.aside), self._path(index))

    def take(self, index: int) -> Activation:
        """Give an activation back; it is held no longer."""
        if index in self._kept:
            activation = self._kept.pop(index)
            self._free += activation.size_bytes
            return activation
        path = self._path(index)
        with torch.serialization.safe_globals([Tile]):
            value, core, aside = torch.load(path, weights_only=True)
        path.unlink()
        return Activation(value, core, aside)

    def _path(self, index: int) -> Path:
        return self._spill_dir / f"{index}.pt"
