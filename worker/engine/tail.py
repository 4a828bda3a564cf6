"""The last operations of a decoder, on decode tiles that are shared out among ranks.

All tiles walk in step: before a normalisation every tile tells its sums, and only then can any go on.
What a tile looks like there is either held or, where that would be much larger than what it came
from, computed once more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.activations import Activation, Held
from worker.engine.decoder import Decoder, Fork, Local, Normalize, Operation, scale_of
from worker.engine.errors import NonFiniteImageError
from worker.engine.grid import Tile
from worker.engine.moments import Moments, measure
from worker.engine.sync import Group
from worker.engine.walk import run

# Moving a byte to main memory and back costs a GPU 0.04 ns, making one of SDXL's by convolution about
# as much: it pays where what would be moved is several times what it is made from.
_WORTH_COMPUTING = 2


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
        tiles: on the canvas that the head has made.
        cut: a tile of that canvas, with its halo.
        recompute: whether computing may be cheaper than moving.
        wide: whether all of it must be computed in float32.
    """

    def __init__(
        self,
        decoder: Decoder,
        operations: list[Operation],
        tiles: Sequence[Tile],
        cut: Callable[[Tile], Activation],
        held: Held,
        group: Group,
        *,
        recompute: bool,
        wide: bool,
    ) -> None:
        self._decoder, self._operations, self._tiles, self._cut = decoder, operations, tiles, cut
        self._held, self._group, self._recompute = held, group, recompute
        self._wide = set(range(len(tiles))) if wide else set[int]()
        self._held_bytes = 0
        self._device = cut(tiles[0]).value.device

    def settle(self, sample: Sequence[int]) -> None:
        """Replace every normalisation by one with the pooled statistics of these tiles.

        Raises:
            NonFiniteImageError: a tile is not finite, in float32 neither.
        """
        for barrier, operation in enumerate(self._operations):
            if isinstance(operation, Normalize):
                own = [index for place, index in enumerate(sample) if self._is_own(place)]
                sums = self._measure_tiles(own, self._find_stop(barrier), operation)
                blank = torch.zeros(3, operation.norm.num_groups, dtype=torch.float64, device=self._device)
                heard = self._share(sums, blank, range(len(sample)))
                self._operations[barrier] = Local(Moments(operation.norm, heard).apply)

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

    def _find_stop(self, barrier: int) -> int:
        """Where tiles wait: before what the fork in front of a normalisation would have them hold beside."""
        return barrier - isinstance(self._operations[barrier - 1], Fork) if barrier else 0

    def _measure_tiles(self, own: Sequence[int], stop: int, operation: Normalize) -> list[Tensor]:
        sums: list[Tensor] = []
        hold: bool | None = None
        for index in own:
            activation = self._advance(index, stop)
            sums.append(measure(operation.norm, activation.owned))
            hold = self._is_worth_holding(activation, len(own)) if hold is None else hold
            if hold:
                self._held.put(index, stop, activation)
        self._mend(own, sums, lambda index: self._measure_again(index, stop, operation))
        return sums

    def _is_worth_holding(self, activation: Activation, count: int) -> bool:
        """Held unless much more would have to be moved than lies where it can be computed from."""
        size = activation.size_bytes * count
        before = self._held_bytes or self._cut(self._tiles[0]).size_bytes * count
        if self._recompute and size - self._held.device_bytes > _WORTH_COMPUTING * before:
            return False
        self._held_bytes = size
        return True

    def _advance(self, index: int, stop: int) -> Activation:
        """A tile behind the first `stop` operations, from where it is held."""
        start, activation = self._held.read(index, self._device) or (0, self._cut(self._tiles[index]))
        if index not in self._wide:
            return run(self._operations[start:stop], activation, self._group)
        with self._decoder.widened():
            return run(self._operations[start:stop], _widen(activation), self._group)

    def _start_again(self, index: int, stop: int) -> Activation:
        self._wide.add(index)
        self._held.drop(index)
        return self._advance(index, stop)

    def _measure_again(self, index: int, stop: int, operation: Normalize) -> Tensor:
        activation = self._start_again(index, stop)
        self._held.put(index, stop, activation)
        return measure(operation.norm, activation.owned)

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
