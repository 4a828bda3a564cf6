"""From pixels to the clean latent, tile by tile, without a seam.

Group normalisations get their statistics from a sample of the tiles, the same for all: exact while the
picture has no more tiles than that, else an estimate that no border between tiles can show.
"""

import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.canvas import Rectangle
from worker.engine.errors import NonFiniteImageError
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Alone, Group
from worker.engine.vae.activation import Activation, Held, spare_host_bytes
from worker.engine.vae.executor import cut, run
from worker.engine.vae.norm import Moments, measure
from worker.engine.vae.operations import (
    Encoder,
    Local,
    Normalize,
    Operation,
    Shrink,
    aligned_halo_of,
    shrink_of,
)

SAMPLE_TILES = 16
Paint = Callable[[Rectangle], Tensor]


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """Work that has no progress of its own to tell goes on; a moment to stop."""


_Operations = list[Operation | Shrink]


def encode(
    paint: Paint,
    height: int,
    width: int,
    encoder: Encoder,
    wrap: tuple[bool, bool],
    plan: DecodePlan,
    group: Group | None = None,
) -> Tensor:
    """`encode_in_steps` in one go."""
    steps = encode_in_steps(paint, height, width, encoder, wrap, plan, group)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def encode_in_steps(
    paint: Paint,
    height: int,
    width: int,
    encoder: Encoder,
    wrap: tuple[bool, bool],
    plan: DecodePlan,
    group: Group | None = None,
) -> Generator[SignOfLife, None, Tensor]:
    """The latent (C, height, width), float32, of a picture that is never held whole.

    Ranks share the tiles out, and all get the same bytes. What is held whole is the canvas behind
    the last stride, as wide as the encoder there.

    Args:
        paint: gives RGB in [-1, 1], (3, h, w), of a rectangle in pixels; on a wrapping axis it may
            lie over the edge.
        height: of the latent; so is `width`.

    Raises:
        NonFiniteImageError: NaN or infinity, in float32 too.
    """
    group = group or Alone()
    latent = yield from _encode(paint, height, width, encoder, wrap, plan, group)
    if not latent.isfinite().all() and encoder.dtype is not torch.float32:
        with encoder.widened():
            latent = yield from _encode(paint, height, width, encoder, wrap, plan, group)
    if not latent.isfinite().all():
        raise NonFiniteImageError("the encoded picture is not finite")
    return latent


def _encode(
    paint: Paint,
    height: int,
    width: int,
    encoder: Encoder,
    wrap: tuple[bool, bool],
    plan: DecodePlan,
    group: Group,
) -> Generator[SignOfLife, None, Tensor]:
    unit = shrink_of(encoder.whole)
    tiled = _TiledEncoder(paint, list(encoder.tiled), height * unit, width * unit, unit, wrap, plan)
    canvas = yield from tiled.execute(group)
    halo = aligned_halo_of(encoder.whole)
    activation = cut(canvas, Rectangle(0, 0, height * unit, width * unit), halo, wrap)
    for operation in encoder.whole:
        activation = _apply(operation, activation, group)
    return activation.owned[0].float()


def _apply(operation: Operation | Shrink, activation: Activation, group: Group) -> Activation:
    if not isinstance(operation, Shrink):
        return run([operation], activation, group)
    core, factor = activation.core, operation.factor
    smaller = Rectangle(core.top // factor, core.left // factor, core.height // factor, core.width // factor)
    return Activation(operation.apply(activation.value), smaller)


class _TiledEncoder:
    """The operations that need tiles."""

    def __init__(
        self,
        paint: Paint,
        operations: _Operations,
        height: int,
        width: int,
        unit: int,
        wrap: tuple[bool, bool],
        plan: DecodePlan,
    ) -> None:
        self._paint, self._operations, self._wrap, self._plan = paint, operations, wrap, plan
        self._height, self._width, self._scale = height, width, shrink_of(operations)
        self._device = torch.device("cpu")
        self._halo = aligned_halo_of(operations)
        size = plan.tile_size * unit
        self._tiles = [
            Rectangle(top, left, min(size, height - top), min(size, width - left))
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]

    def execute(self, group: Group) -> Generator[SignOfLife, None, Tensor]:
        """The canvas (1, C, H, W) behind the last operation."""
        everything = range(len(self._tiles))
        with tempfile.TemporaryDirectory(dir=self._plan.spill_dir, prefix="encode-") as folder:
            held = Held(self._plan.memory_bytes, spare_host_bytes(), Path(folder))
            if len(everything) <= SAMPLE_TILES:
                yield from self._settle(everything, held)
                return self._lay([self._finish(index, held) for index in everything])
            sample = everything[:: -(-len(everything) // SAMPLE_TILES)]
            yield from self._settle(sample, held)
            for index in sample:
                held.drop(index)
            encoded = yield from self._share(held, group)
            return self._lay(encoded)

    def _settle(self, sample: Sequence[int], held: Held) -> Generator[SignOfLife, None, None]:
        """Replace every normalisation by one with these tiles' statistics."""
        for barrier, operation in enumerate(self._operations):
            if isinstance(operation, Normalize):
                sums: list[Tensor] = []
                for index in sample:
                    activation = self._advance(index, barrier, held)
                    held.put(index, barrier, activation)
                    sums.append(measure(operation.norm, activation.owned))
                    yield SignOfLife()
                self._operations[barrier] = Local(Moments(operation.norm, sums).apply)

    def _share(self, held: Held, group: Group) -> Generator[SignOfLife, None, list[Tensor]]:
        """Every rank finishes some tiles and gets all of them. All tiles are sent in one shape."""
        gathered: list[Tensor] = []
        full = self._tiles[0]
        for first in range(0, len(self._tiles), group.size):
            own = self._finish(min(first + group.rank, len(self._tiles) - 1), held)
            padded = F.pad(own, (0, full.width - own.shape[-1], 0, full.height - own.shape[-2]))
            group.meet()
            gathered += group.gather(padded)
            yield SignOfLife()
        return gathered[: len(self._tiles)]

    def _lay(self, encoded: Sequence[Tensor]) -> Tensor:
        canvas = encoded[0].new_empty(1, encoded[0].shape[1], self._height, self._width)
        for tile, value in zip(self._tiles, encoded, strict=True):
            tile.slice(canvas).copy_(value[..., : tile.height, : tile.width])
        return canvas

    def _finish(self, index: int, held: Held) -> Tensor:
        return self._advance(index, len(self._operations), held).owned

    def _advance(self, index: int, stop: int, held: Held) -> Activation:
        start, activation = held.read(index, self._device) or (0, self._begin(self._tiles[index]))
        for place in range(start, stop):
            activation = _apply(self._operations[place], activation, Alone())
            if isinstance(self._operations[place], Shrink):
                activation = activation.trimmed(aligned_halo_of(self._operations[place + 1 :]))
        return activation

    def _begin(self, tile: Rectangle) -> Activation:
        place = tile.scaled(self._scale)
        above, rise = _reach(place.top, place.height, self._height * self._scale, self._halo, self._wrap[0])
        before, span = _reach(place.left, place.width, self._width * self._scale, self._halo, self._wrap[1])
        value = self._paint(Rectangle(place.top - above, place.left - before, rise, span))[None]
        self._device = value.device
        return Activation(value, Rectangle(above, before, place.height, place.width))


def _reach(start: int, extent: int, length: int, halo: int, wraps: bool) -> tuple[int, int]:
    """How many pixels to take before a tile on one axis, and how many in all."""
    first, last = start - halo, start + extent + halo
    if not wraps:
        first, last = max(first, 0), min(last, length)
    return start - first, last - first
