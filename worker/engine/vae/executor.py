"""The last operations of a decoder, on decode tiles that are shared out among ranks.

All tiles advance together: a normalisation needs the sums of every tile before any can go on.
memory.py chooses what of them is held meanwhile, and what is computed once more.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.canvas import Rectangle
from worker.engine.errors import NonFiniteImageError
from worker.engine.ranks import Group
from worker.engine.vae.activation import Activation, Held
from worker.engine.vae.memory import choose_holds, find_stops, survey
from worker.engine.vae.norm import Moments, measure
from worker.engine.vae.operations import (
    Attend,
    Decoder,
    Fork,
    Join,
    Local,
    Normalize,
    Operation,
    Trim,
    halo_of,
    scale_of,
)


@dataclass(frozen=True, slots=True)
class Finished:
    """One decoded tile.

    Args:
        image: (3, h, w), without its halo.
        widened: whether it was not finite in the decoder's own type.
    """

    image: Tensor
    widened: bool


class TiledDecoder:
    """Runs this rank's tiles through the operations; other ranks run theirs.

    Args:
        operations: of the tail; normalisations are replaced by what they came to.
        channels: of each operation's output.
        canvas: what the head has made, (1, C, H, W).
        tiles: on that canvas.
        cut: one of them, with its halo.
        recompute: whether computing may be cheaper than moving.
        wide: whether all of it must be computed in float32.
    """

    def __init__(
        self,
        decoder: Decoder,
        operations: list[Operation],
        channels: Sequence[int],
        canvas: Tensor,
        tiles: Sequence[Rectangle],
        cut: Callable[[Rectangle], Activation],
        held: Held,
        group: Group,
        *,
        recompute: bool,
        wide: bool,
    ) -> None:
        self._decoder, self._operations, self._channels = decoder, operations, channels
        self._canvas, self._tiles, self._cut = canvas, tiles, cut
        self._held, self._group, self._recompute = held, group, recompute
        self._wide = set(range(len(tiles))) if wide else set[int]()
        self._device = canvas.device

    def settle(self, sample: Sequence[int]) -> None:
        """Replace every normalisation by one with the pooled statistics of these tiles.

        Raises:
            NonFiniteImageError: a tile is not finite, in float32 neither.
        """
        own = [index for place, index in enumerate(sample) if self._is_own(place)]
        stops = find_stops(self._operations)
        holds = self._choose_holds(own, list(stops.values()))
        for (barrier, stop), hold in zip(stops.items(), holds, strict=True):
            operation = self._operations[barrier]
            assert isinstance(operation, Normalize)
            sums = self._measure_tiles(own, stop, hold, operation.norm)
            blank = torch.zeros(3, operation.norm.num_groups, dtype=torch.float64, device=self._device)
            gathered = self._share(sums, blank, range(len(sample)))
            self._operations[barrier] = Local(Moments(operation.norm, gathered).apply)

    def _choose_holds(self, own: Sequence[int], stops: list[int]) -> Sequence[int | None]:
        if not self._recompute:
            return stops
        _, depth, height, width = self._canvas.shape
        sites = survey(
            self._operations, self._channels, [self._tiles[index] for index in own],
            (depth, height, width), halo_of(self._operations), self._canvas.itemsize,
        )  # fmt: skip
        return choose_holds(sites, stops, self._held.device_bytes)

    def forget(self, sample: Sequence[int]) -> None:
        """Hold nothing any longer: whoever comes last need not have been there before."""
        for index in sample:
            self._held.drop(index)

    def finish(self, row: Sequence[int]) -> list[Finished]:
        """Decode these tiles, consecutive ones, to the end; every rank gets all of them.

        Raises:
            NonFiniteImageError: a tile is not finite, in float32 neither.
        """
        own = [index for index in row if self._is_own(index)]
        images = [self._advance(index, len(self._operations)).owned[0] for index in own]
        self._mend(own, images, lambda index: self._start_again(index, len(self._operations)).owned[0])
        for index in own:
            self._held.drop(index)
        return self._share_images(row, images)

    def _share_images(self, row: Sequence[int], images: Sequence[Tensor]) -> list[Finished]:
        shapes = [self._shape(index) for index in row]
        blank = torch.zeros(3, *map(max, zip(*shapes, strict=True)), device=self._device)
        padded = [F.pad(image.float(), _padding(image, blank)) for image in images]
        flags = [torch.tensor(index in self._wide) for index in row if self._is_own(index)]
        gathered = self._share(padded, blank, row)
        widened = self._share(flags, torch.tensor(False), row)
        return [
            Finished(image[:, :height, :width], bool(flag))
            for image, flag, (height, width) in zip(gathered, widened, shapes, strict=True)
        ]

    def _share(self, own: Sequence[Tensor], blank: Tensor, places: Sequence[int]) -> list[Tensor]:
        """What all ranks have made of consecutive places, in order; `blank` fills up where one has less."""
        slots = -(-len(places) // self._group.size)
        self._group.meet()
        gathered = self._group.gather(torch.stack([*own, *[blank] * (slots - len(own))]))
        waiting = [iter(tensors.unbind()) for tensors in gathered]
        return [next(waiting[place % self._group.size]) for place in places]

    def _shape(self, index: int) -> tuple[int, int]:
        tile, scale = self._tiles[index], scale_of(self._operations)
        return tile.height * scale, tile.width * scale

    def _is_own(self, place: int) -> bool:
        return place % self._group.size == self._group.rank

    def _measure_tiles(
        self, own: Sequence[int], stop: int, hold: int | None, norm: nn.GroupNorm
    ) -> list[Tensor]:
        sums = [measure(norm, self._advance(index, stop, hold).owned) for index in own]
        self._mend(own, sums, lambda index: self._measure_again(index, stop, norm))
        return sums

    def _advance(self, index: int, stop: int, hold: int | None = None) -> Activation:
        """A tile behind the first `stop` operations, from where it is held; on the way held behind the first `hold`."""
        start, activation = self._held.read(index, self._device) or (0, self._cut(self._tiles[index]))
        wide = index in self._wide
        with self._decoder.widened() if wide else nullcontext():
            activation = _widen(activation) if wide else activation
            if hold is not None and start < hold:
                activation = run(self._operations[start:hold], activation, self._group)
                self._held.put(index, hold, activation)
                start = hold
            return run(self._operations[start:stop], activation, self._group)

    def _start_again(self, index: int, stop: int) -> Activation:
        self._wide.add(index)
        self._held.drop(index)
        return self._advance(index, stop)

    def _measure_again(self, index: int, stop: int, norm: nn.GroupNorm) -> Tensor:
        activation = self._start_again(index, stop)
        self._held.put(index, stop, activation)
        return measure(norm, activation.owned)

    def _mend(self, own: Sequence[int], results: list[Tensor], again: Callable[[int], Tensor]) -> None:
        """Compute in float32 what is not finite. The host waits for the device once for all tiles."""
        if not results:
            return
        broken = torch.stack([~result.isfinite().all() for result in results]).cpu()
        for place in map(int, broken.nonzero()):
            index = own[place]
            if index not in self._wide and self._decoder.dtype is not torch.float32:
                results[place] = again(index)
            if not results[place].isfinite().all():
                raise NonFiniteImageError(f"decode tile {index + 1} of {len(self._tiles)} is not finite")


def _padding(image: Tensor, like: Tensor) -> tuple[int, int, int, int]:
    """For `torch.nn.functional.pad`: right and bottom, up to that size."""
    return 0, like.shape[-1] - image.shape[-1], 0, like.shape[-2] - image.shape[-2]


def _widen(activation: Activation) -> Activation:
    return activation.moved(lambda tensor: tensor.float())


# Attention is shared out in strips of queries, always the same ones: bytes must not depend on ranks.
_STRIPS = 8


def cut(canvas: Tensor, tile: Rectangle, halo: int, wrap: tuple[bool, bool]) -> Activation:
    """A tile of (1, C, H, W) with a halo that goes round a wrapping axis and ends at a border."""
    above, rows = _reach(tile.top, tile.height, canvas.shape[-2], halo, wrap[0])
    before, columns = _reach(tile.left, tile.width, canvas.shape[-1], halo, wrap[1])
    value = canvas[..., rows, :][..., columns]
    return Activation(value, Rectangle(above, before, tile.height, tile.width))


def _reach(start: int, extent: int, length: int, halo: int, wraps: bool) -> tuple[int, slice | list[int]]:
    """How many pixels lie before the tile on one axis, and which pixels those and the tile are."""
    first, last = start - halo, start + extent + halo
    if wraps and not 0 <= first < last <= length:
        return halo, [place % length for place in range(first, last)]
    return start - max(first, 0), slice(max(first, 0), min(last, length))


def run(operations: Sequence[Operation], activation: Activation, group: Group) -> Activation:
    for operation in operations:
        activation = _apply(operation, activation, group)
    return activation


def _apply(operation: Operation, activation: Activation, group: Group) -> Activation:
    value = activation.value
    match operation:
        case Local(apply=apply, scale=scale):
            return activation.enlarged(apply(value), scale)
        case Trim(halo=halo):
            return activation.trimmed(halo)
        case Fork(shortcut=shortcut):
            return activation.forked(shortcut(value))
        case Join(divisor=divisor):
            return activation.joined(divisor)
        case Attend():
            return activation.enlarged(_attend(operation, activation, group), 1)
        case Normalize(norm=norm):
            return activation.enlarged(Moments(norm, [measure(norm, activation.owned)]).apply(value), 1)


def _attend(attend: Attend, activation: Activation, group: Group) -> Tensor:
    """Each rank computes the queries of some strips of rows over the whole canvas, then all are gathered."""
    height = activation.value.shape[-2]
    rise = -(-height // _STRIPS)
    starts = range(0, height, rise)
    answers: list[Tensor] = []
    for first in range(0, len(starts), group.size):
        # The last strip lies within the canvas as a whole, over others if need be: all have one shape.
        start = min(starts[min(first + group.rank, len(starts) - 1)], height - rise)
        own = attend.apply(activation.value[..., start : start + rise, :], activation.owned)
        group.meet()
        answers += group.gather(own.permute(0, 2, 3, 1))  # channels last: one layout for any number of ranks
    last = height - starts[-1]
    whole = torch.cat([*answers[: len(starts) - 1], answers[len(starts) - 1][:, rise - last :]], dim=1)
    return whole.permute(0, 3, 1, 2)
