"""The last operations of a decoder, on decode tiles that are shared out among ranks.

All tiles walk in step: before a normalisation every tile tells its sums, and only then can any go on.
What of them is held meanwhile, and what is computed once more, says holding.py.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.activations import Activation, Held
from worker.engine.decoder import Decoder, Local, Normalize, Operation, halo_of, scale_of
from worker.engine.errors import NonFiniteImageError
from worker.engine.grid import Tile
from worker.engine.holding import choose_holds, find_stops, survey
from worker.engine.moments import Moments, measure
from worker.engine.sync import Group
from worker.engine.walk import run


@dataclass(frozen=True, slots=True)
class Finished:
    """One decoded tile.

    Args:
        image: (3, h, w), without its halo.
        widened: whether it was not finite in the decoder's own type.
    """

    image: Tensor
    widened: bool


class Tail:
    """Walks its tiles; other ranks walk the others.

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
        tiles: Sequence[Tile],
        cut: Callable[[Tile], Activation],
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
            heard = self._share(sums, blank, range(len(sample)))
            self._operations[barrier] = Local(Moments(operation.norm, heard).apply)

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
        """Decode these tiles, consecutive ones, to the end; every rank hears all of them.

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
        heard = self._share(padded, blank, row)
        widened = self._share(flags, torch.tensor(False), row)
        return [
            Finished(image[:, :height, :width], bool(flag))
            for image, flag, (height, width) in zip(heard, widened, shapes, strict=True)
        ]

    def _share(self, own: Sequence[Tensor], blank: Tensor, places: Sequence[int]) -> list[Tensor]:
        """What all ranks have made of consecutive places, in order; `blank` fills up where one has less."""
        slots = -(-len(places) // self._group.size)
        self._group.meet()
        heard = self._group.gather(torch.stack([*own, *[blank] * (slots - len(own))]))
        waiting = [iter(tensors.unbind()) for tensors in heard]
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
