"""Operations on tiles that are shared out among ranks, from a latent to pixels or from pixels to a latent.

All tiles advance together: a normalisation needs the sums of every tile before any can go on.
"""

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle
from worker.engine.errors import NonFiniteImageError
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Group
from worker.engine.vae.activation import Activation, Held, spare_host_bytes
from worker.engine.vae.memory import find_stops
from worker.engine.vae.norm import blank_sums, measure, normalize_by, pool
from worker.engine.vae.operations import Coder, Local, Normalize, Operation, place_after
from worker.engine.vae.whole import run

SAMPLE_TILES = 16
Holds = Sequence[int | None]
"""For each normalisation, after how many operations every tile is held on the way to it; None: as it was."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Work continues; here the caller may stop."""


@dataclass(frozen=True, slots=True)
class MomentsPooled:
    """What normalisations will go by: n, Σx, Σx² of each group over the canvas, (3, groups), float64, for each."""

    moments: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class TileFinished:
    """One tile after the last operation.

    Args:
        place: where it lies there.
        value: (C, h, w), without its halo.
        widened: whether it was not finite in the coder's own type, and computed again in float32.
    """

    place: Rectangle
    value: Tensor
    widened: bool


@dataclass(frozen=True, slots=True)
class TiledRun:
    """What is to be done tile by tile.

    Args:
        coder: says what type is computed in.
        operations: those of the coder that need tiles.
        tiles: in front of the first operation, row by row from the top.
        cut: one of them, with its halo.
        exact: whether statistics are those of all tiles, and not of a sample where there are many.
        choose_holds: where some tiles are held; None: in front of every normalisation.
        wanted: of all tiles, which are finished; None: all.
    """

    coder: Coder
    operations: Sequence[Operation]
    tiles: Sequence[Rectangle]
    cut: Callable[[Rectangle], Activation]
    exact: bool = False
    choose_holds: Callable[[Sequence[Rectangle]], Holds] | None = None
    wanted: Sequence[int] | None = None

    @property
    def sample(self) -> range:
        """The tiles whose statistics count."""
        everything = range(len(self.tiles))
        return everything if self.exact else everything[:: -(-len(everything) // SAMPLE_TILES)]

    @property
    def rows(self) -> Iterator[list[int]]:
        wanted = range(len(self.tiles)) if self.wanted is None else self.wanted
        for _, row in groupby(wanted, key=lambda index: self.tiles[index].top):
            yield list(row)


def lay_tiles(canvas: Plane, size: int) -> list[Rectangle]:
    """Tiles side by side, the last of each axis as large as what is left."""
    return [
        Rectangle(top, left, min(size, canvas.height - top), min(size, canvas.width - left))
        for top in range(0, canvas.height, size)
        for left in range(0, canvas.width, size)
    ]


def run_tiles(
    tiled: TiledRun, plan: DecodePlan, group: Group
) -> Iterator[Heartbeat | MomentsPooled | TileFinished]:
    """Measure every normalisation, then finish the tiles; every rank gets all of them, row by row.

    The bytes do not depend on how many ranks there are.

    Raises:
        NonFiniteImageError: a tile is not finite, not in float32 either.
    """
    with tempfile.TemporaryDirectory(dir=plan.spill_dir, prefix="tiles-") as folder:
        executor = _Executor(tiled, Held(plan.memory_bytes, spare_host_bytes(), Path(folder)), group)
        operations, moments = yield from executor.pool_moments()
        yield MomentsPooled(tuple(moments))
        for row in tiled.rows:
            yield from (yield from executor.finish(operations, row))


@dataclass(frozen=True, slots=True)
class _Executor:
    """Runs this rank's tiles through the operations; other ranks run theirs."""

    tiled: TiledRun
    held: Held
    group: Group

    def pool_moments(self) -> Generator[Heartbeat, None, tuple[Sequence[Operation], list[Tensor]]]:
        """The operations with every normalisation replaced by one with pooled moments, and those moments."""
        operations, moments = list(self.tiled.operations), list[Tensor]()
        sample = self.tiled.sample
        own = sample[self.group.rank :: self.group.size]
        stops = find_stops(operations)
        for (norm, stop), hold in zip(stops.items(), self._choose_holds(own, stops), strict=True):
            normalize = operations[norm]
            assert isinstance(normalize, Normalize)
            sums = yield from self._measure(normalize, operations[:stop], own, hold)
            moments.append(pool(self._share(sums, blank_sums(normalize.norm), range(len(sample)))))
            operations[norm] = Local(normalize_by(normalize.norm, moments[-1]))
        if len(sample) < len(self.tiled.tiles):
            for index in own:  # all tiles are finished from the start, those of the sample too
                self.held.drop(index)
        return operations, moments

    def finish(
        self, operations: Sequence[Operation], row: Sequence[int]
    ) -> Generator[Heartbeat, None, list[TileFinished]]:
        """Take these tiles, consecutive ones, through all operations; every rank gets all of them."""
        own = [index for index in row if index % self.group.size == self.group.rank]
        values = yield from self._complete(own, lambda index: self._advance(operations, index).owned[0])
        for index in own:
            self.held.drop(index)
        return self._share_row(operations, row, values)

    def _choose_holds(self, own: Sequence[int], stops: dict[int, int]) -> Holds:
        if self.tiled.choose_holds is None:
            return list(stops.values())
        return self.tiled.choose_holds([self.tiled.tiles[index] for index in own])

    def _measure(
        self, normalize: Normalize, operations: Sequence[Operation], own: Sequence[int], hold: int | None
    ) -> Generator[Heartbeat, None, list[Tensor]]:
        def measure_tile(index: int) -> Tensor:
            return measure(normalize.norm, self._advance(operations, index, hold).owned)

        return (yield from self._complete(own, measure_tile))

    def _advance(self, operations: Sequence[Operation], index: int, hold: int | None = None) -> Activation:
        """A tile after these operations, from where it is held; on the way held after the first `hold`."""
        start, activation = self.held.read(index) or (0, self._cut(index))
        with self.tiled.coder.widened() if activation.wide else nullcontext():
            if hold is not None and start < hold:
                activation = run(operations[start:hold], activation, self.group)
                self.held.put(index, hold, activation)
                start = hold
            return run(operations[start:], activation, self.group)

    def _cut(self, index: int) -> Activation:
        return self.tiled.cut(self.tiled.tiles[index])

    def _complete(
        self, own: Sequence[int], compute: Callable[[int], Tensor]
    ) -> Generator[Heartbeat, None, list[Tensor]]:
        """Something of each tile, finite. The host waits for the device once for all tiles."""
        results: list[Tensor] = []
        for index in own:
            results.append(compute(index))
            yield Heartbeat()
        for place in _find_broken(results):
            results[place] = self._recompute_in_float32(own[place], compute)
        return results

    def _recompute_in_float32(self, index: int, compute: Callable[[int], Tensor]) -> Tensor:
        """The same in float32, from the first operation on."""
        if self.tiled.coder.dtype is not torch.float32:
            self.held.put(index, 0, self._cut(index).widened())
            result = compute(index)
            if result.isfinite().all():
                return result
        raise NonFiniteImageError(f"decode tile {index + 1} of {len(self.tiled.tiles)} is not finite")

    def _share_row(
        self, operations: Sequence[Operation], row: Sequence[int], own: Sequence[Tensor]
    ) -> list[TileFinished]:
        """All in one type: float32 as soon as one of them needed it."""
        dtype = self.tiled.coder.dtype
        facts = [torch.tensor([len(value), value.dtype is not dtype]) for value in own]
        depths, widened = torch.stack(self._share(facts, torch.tensor([0, 0]), row)).unbind(1)
        places = [place_after(operations, self.tiled.tiles[index]) for index in row]
        height, width = max(place.height for place in places), max(place.width for place in places)
        device = (own[0] if own else self._cut(row[0]).value).device
        blank = torch.zeros(
            int(depths.max()), height, width, dtype=torch.float32 if widened.any() else dtype, device=device
        )
        gathered = self._share([_pad(value, blank) for value in own], blank, row)
        return [
            TileFinished(place, value[:, : place.height, : place.width], bool(wide))
            for place, value, wide in zip(places, gathered, widened, strict=True)
        ]

    def _share(self, own: Sequence[Tensor], blank: Tensor, places: Sequence[int]) -> list[Tensor]:
        """What all ranks have made of consecutive places, in order; `blank` fills up where one has less."""
        slots = -(-len(places) // self.group.size)
        self.group.barrier()
        gathered = self.group.all_gather(torch.stack([*own, *[blank] * (slots - len(own))]))
        waiting = [iter(tensors.unbind()) for tensors in gathered]
        return [next(waiting[place % self.group.size]) for place in places]


def _find_broken(results: Sequence[Tensor]) -> list[int]:
    if not results:
        return []
    broken = torch.stack([~result.isfinite().all() for result in results]).cpu()
    return [int(place) for place in broken.nonzero()]


def _pad(value: Tensor, like: Tensor) -> Tensor:
    """In the type of `like`, and up to its size on the right and at the bottom."""
    return F.pad(
        value.to(like.dtype), (0, like.shape[-1] - value.shape[-1], 0, like.shape[-2] - value.shape[-2])
    )
