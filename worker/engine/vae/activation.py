"""Tiles between two operations, held where memory is free: on the device, in main memory, in files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worker.engine.canvas import Rectangle
from worker.engine.memory import measure_main_memory


@dataclass(frozen=True, slots=True)
class Activation:
    """What one tile looks like between two operations.

    Args:
        value: (1, C, h, w), halo included.
        core: the owned pixels within `value`.
        aside: what the last `Fork` set aside, at most one at a time; often `value` itself.
        wide: whether it must be computed in float32.
    """

    value: Tensor
    core: Rectangle
    aside: Tensor | None = None
    wide: bool = False

    @property
    def owned(self) -> Tensor:
        return self.core.slice(self.value)

    @property
    def size_bytes(self) -> int:
        own = self.aside is not None and self.aside.data_ptr() != self.value.data_ptr()
        return self.value.nbytes + (self.aside.nbytes if own and self.aside is not None else 0)

    def widened(self) -> "Activation":
        return replace(self.moved(lambda tensor: tensor.float()), wide=True)

    def joined(self, divisor: float) -> "Activation":
        assert self.aside is not None
        total = self.value + self.aside
        return replace(self, value=total if divisor == 1 else total.div_(divisor), aside=None)

    def trimmed(self, halo: int) -> "Activation":
        """The same with at most `halo` pixels around the core; a copy, since a view would keep all that was cut off."""
        top, left = max(self.core.top - halo, 0), max(self.core.left - halo, 0)
        bottom, right = self.core.top + self.core.height + halo, self.core.left + self.core.width + halo
        core = replace(self.core, top=self.core.top - top, left=self.core.left - left)
        value = self.value[..., top:bottom, left:right]
        return replace(self, value=value if value.shape == self.value.shape else value.clone(), core=core)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Activation":
        value = move(self.value)
        shared = self.aside is not None and self.aside.data_ptr() == self.value.data_ptr()
        aside = value if shared else None if self.aside is None else move(self.aside)
        return replace(self, value=value, aside=aside)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one activation is held, and after how many operations.

    Args:
        activation: without its tensors where they lie in a file.
        device: that it goes back to from main memory; None: it has not left it.
    """

    position: int
    size_bytes: int
    activation: Activation
    device: torch.device | None = None
    file: Path | None = None


class Held:
    """Activations by tile: as many as fit stay on the device, then in main memory, the rest in files.

    Args:
        device_bytes: what may stay on the device; for a CPU, in main memory.
        host_bytes: what a GPU's activations may take of main memory.
    """

    def __init__(self, device_bytes: int, host_bytes: int, spill_dir: Path) -> None:
        self._device_free = device_bytes
        self._host_free = host_bytes
        self._spill_dir = spill_dir
        self._places: dict[int, _Place] = {}

    def put(self, index: int, position: int, activation: Activation) -> None:
        """Hold a tile, instead of what was held of it."""
        self.drop(index)
        self._places[index] = self._hold(index, position, activation, activation.size_bytes)

    def _hold(self, index: int, position: int, activation: Activation, size: int) -> _Place:
        if size <= self._device_free:
            self._device_free -= size
            return _Place(position, size, activation)
        if activation.value.is_cuda and size <= self._host_free:
            self._host_free -= size
            return _Place(position, size, activation.moved(_to_pinned), activation.value.device)
        file = self._spill_dir / f"{index}.pt"
        torch.save((activation.value, activation.aside), file)
        return _Place(position, size, activation.moved(_to_nothing), file=file)

    def read(self, index: int) -> tuple[int, Activation] | None:
        """A tile that is held, and after how many operations it is."""
        place = self._places.get(index)
        if place is None:
            return None
        activation = place.activation
        if place.file:
            value, aside = torch.load(place.file, weights_only=True)  # to the device that it comes from
            activation = replace(activation, value=value, aside=aside)
        elif place.device:
            activation = activation.moved(partial(_to_device, device=place.device))
        return place.position, activation

    def drop(self, index: int) -> None:
        """Hold a tile no longer."""
        place = self._places.pop(index, None)
        if place is None:
            return
        if place.file:
            place.file.unlink()
        elif place.device:
            self._host_free += place.size_bytes
        else:
            self._device_free += place.size_bytes


def _to_pinned(tensor: Tensor) -> Tensor:
    """A copy in the same layout that the device makes while the host goes on; only page-locked memory allows that."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _to_nothing(tensor: Tensor) -> Tensor:
    return tensor.new_empty(0)


def spare_host_bytes() -> int:
    """Half of the main memory that nobody uses."""
    return measure_main_memory().free // 2
