"""How much of a decode is done at once, by the memory that there is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from worker.engine.canvas import Rectangle
from worker.engine.plan import DecodePlan
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
    with_trims,
)

_AT_ONCE = 4  # activations: input, output, set aside, work space


def choose_split(latent: Tensor, decoder: Decoder, plan: DecodePlan) -> int:
    """How many operations run on the whole canvas.

    All up to the last attention, then as many as fit `memory_bytes`, as `measure_head` counts. 0 where
    nothing needs the whole canvas: then every operation runs on tiles.
    """
    if not any(isinstance(operation, Normalize | Attend) for operation in decoder.operations):
        return 0
    attentions = [
        index for index, operation in enumerate(decoder.operations) if isinstance(operation, Attend)
    ]
    first_allowed = attentions[-1] if attentions else -1
    split = 0
    for index, (size_bytes, inside_fork) in enumerate(_measure_operations(latent, decoder)):
        if split > first_allowed and _AT_ONCE * size_bytes > plan.memory_bytes:
            break
        split = split if inside_fork else index + 1
    return split


def measure_head(latent: Tensor, decoder: Decoder, split: int) -> int:
    """Bytes that the first operations take at the most when they run on the whole canvas."""
    sizes = [size_bytes for size_bytes, _ in _measure_operations(latent, decoder)]
    return _AT_ONCE * max(sizes[:split], default=0)


def choose_mode(latent: Tensor, decoder: Decoder, plan: DecodePlan) -> Literal["exact", "bounded"]:
    """Resolve `auto`: exact while what all tiles hold stays under four times `memory_bytes`."""
    if plan.mode != "auto":
        return plan.mode
    held_bytes = 2 * max(size_bytes for size_bytes, _ in _measure_operations(latent, decoder))
    return "exact" if held_bytes <= 4 * plan.memory_bytes else "bounded"


def _measure_operations(latent: Tensor, decoder: Decoder) -> Iterator[tuple[int, bool]]:
    """(bytes of the whole canvas after it, whether something is set aside) for each operation."""
    plane_bytes = latent[0].numel() * decoder.dtype.itemsize
    inside_fork = False
    for operation, channels in zip(decoder.operations, decoder.channels, strict=True):
        plane_bytes *= operation.scale**2 if isinstance(operation, Local) else 1
        inside_fork = isinstance(operation, Fork) or (inside_fork and not isinstance(operation, Join))
        yield plane_bytes * channels, inside_fork


# Seconds on one H100; only their proportions count.
_FLOP_S = 1 / 400e12
_BYTE_S = 1 / 2e12  # of the device's own memory
_MOVE_S = 1 / 50e9  # a byte to main memory, or back
_LOCK_S = 0.4e-9  # a byte of main memory to be page-locked, before the first time
_RENT_S = 0.2 / 2**30  # a byte of the device held must save: others have a use for it, too


@dataclass(frozen=True, slots=True)
class Site:
    """All of some tiles after one operation.

    Args:
        size_bytes: of what there is of them, halo and what is set aside included.
        work_s: what that operation takes for all of them, seconds.
        open: whether a tile can be held here at no extra cost: not right after a fork.
    """

    size_bytes: int
    work_s: float
    open: bool = True


@dataclass(frozen=True, slots=True)
class Tail:
    """The last operations of a decoder, which need tiles.

    Args:
        operations: with trims.
        channels: of the output of each that is no trim.
        state: of the canvas in front of the first, (1, C, H, W); here only its shape, type and device count.
    """

    operations: Sequence[Operation]
    channels: Sequence[int]
    state: Tensor

    @classmethod
    def of(cls, decoder: Decoder, split: int, state: Tensor) -> "Tail":
        """From the operation `split` on."""
        operations = list(with_trims(decoder.operations[split:], at_joins=True))
        return cls(operations, decoder.channels[split:], state)


def survey(tail: Tail, tiles: Sequence[Rectangle]) -> list[Site]:
    """One site in front of the first operation, then one after each."""
    _, depth, height, total_width = tail.state.shape
    operations, itemsize = tail.operations, tail.state.itemsize
    aside, scale, halo = 0, 1, halo_of(operations)
    channels = list(_repeat_at_trims(operations, tail.channels))
    edges = torch.tensor([(each.top, each.left, each.height, each.width) for each in tiles])
    sites = [Site(0, 0.0)]  # the canvas is there anyway
    for index, (operation, width) in enumerate(zip(operations, channels, strict=True)):
        before, flop, passes = depth, 0, 3
        match operation:
            case Fork():
                aside = _find_join(operations, channels, index)
                flop = 2 * before * aside if aside != before else 0
            case Join():
                aside = 0
            case Trim():
                halo, passes = min(halo, operation.halo), 0
            case Local():
                scale, halo, depth = scale * operation.scale, halo * operation.scale, width
                flop = 2 * 9 * before * depth if operation.reach else 0
            case _:
                passes = 5  # measured, then applied
        pixels = _count_pixels(edges * scale, halo, height * scale, total_width * scale)
        work_s = pixels * (flop * _FLOP_S + passes * depth * itemsize * _BYTE_S)
        sites.append(Site(pixels * (depth + aside) * itemsize, work_s, not isinstance(operation, Fork)))
    return sites


def _repeat_at_trims(operations: Sequence[Operation], channels: Sequence[int]) -> Iterator[int]:
    waiting, width = iter(channels), 0
    for operation in operations:
        width = width if isinstance(operation, Trim) else next(waiting)
        yield width


def _find_join(operations: Sequence[Operation], channels: Sequence[int], start: int) -> int:
    """Channels of what a fork sets aside: those of the sum that it will be part of."""
    return next(channels[i] for i in range(start, len(operations)) if isinstance(operations[i], Join))


def _count_pixels(edges: Tensor, halo: int, height: int, width: int) -> int:
    """Of all tiles, each (top, left, height, width) of `edges`: a canvas of 16384² px has a thousand."""
    top, left, tile_height, tile_width = edges.unbind(1)
    rows = (top + tile_height + halo).clamp(max=height) - (top - halo).clamp(min=0)
    columns = (left + tile_width + halo).clamp(max=width) - (left - halo).clamp(min=0)
    return int((rows * columns).sum())


def plan_holds(tail: Tail, tiles: Sequence[Rectangle], plan: DecodePlan) -> Sequence[int | None]:
    """`choose_holds` for these tiles; in front of every normalisation where nothing is to be computed once more."""
    stops = list(find_stops(tail.operations).values())
    recompute = tail.state.is_cuda if plan.recompute is None else plan.recompute
    return choose_holds(survey(tail, tiles), stops, plan.memory_bytes) if recompute else stops


def choose_holds(sites: Sequence[Site], stops: Sequence[int], device_bytes: int) -> list[int | None]:
    """For each run up to a stop, after how many operations every tile is held on the way; None: as it was.

    A plain rule (hold at each stop that fits the device, else at the last narrow place that does) is
    predicted to be no slower for SDXL's decoder and 9 GiB: nothing at 2048², 0.6 s for 0.9 at 4096²,
    10.1 for 10.1 at 8192². But at 4096² it holds 8.4 GiB for 4.6, and where memory is short it falls
    behind: 30.3 s for 17.3 at 8192² with 4 GiB, 124 for 81 at 16384² with 9. No one ceiling for what is
    held comes within 5 % everywhere either (16384²: 92.5 s).

    Args:
        stops: operations in front of each normalisation, in order.
        device_bytes: what may be held on the device; what is more goes through main memory. Less is
            taken where more would save little.
    """
    places = {*stops, *_find_narrows(sites)}
    plans = [_search(sites, stops, places, device_bytes)]
    for most in {sites[place].size_bytes for place in places if sites[place].size_bytes <= device_bytes}:
        plans.append(_search(sites, stops, {each for each in places if sites[each].size_bytes <= most}, most))
    return min(plans, key=lambda plan: plan[0])[1]


def _search(
    sites: Sequence[Site], stops: Sequence[int], places: set[int], device_bytes: int
) -> tuple[float, list[int | None]]:
    """The quickest of all plans, by dynamic programming over where the tiles are held; seconds with rent, holds."""
    reached = list(accumulate(site.work_s for site in sites))
    moved = [max(site.size_bytes - device_bytes, 0) for site in sites]
    known: dict[int, tuple[float, list[int | None]]] = {0: (0.0, [])}
    for stop in stops:
        after: dict[int, tuple[float, list[int | None]]] = {}
        for held, (spent, holds) in known.items():
            computed = spent + moved[held] * _MOVE_S + reached[stop] - reached[held]
            for place in (held, *(each for each in places if held < each <= stop)):
                total = computed + (moved[place] * (_MOVE_S + _LOCK_S) if place > held else 0)
                if place not in after or total < after[place][0]:
                    after[place] = total, [*holds, place if place > held else None]
        known = after
    rent_s = device_bytes * _RENT_S
    finished = [
        (spent + moved[held] * _MOVE_S + reached[-1] - reached[held] + rent_s, holds)
        for held, (spent, holds) in known.items()
    ]
    return min(finished, key=lambda plan: plan[0])


def _find_narrows(sites: Sequence[Site]) -> list[int]:
    """Where there is less than at both neighbours, or as little: in front of what enlarges, for one."""
    return [
        index
        for index in range(1, len(sites) - 1)
        if sites[index].open
        and sites[index].size_bytes <= sites[index - 1].size_bytes
        and sites[index].size_bytes < sites[index + 1].size_bytes
    ]


def find_stops(operations: Sequence[Operation]) -> dict[int, int]:
    """For each normalisation where tiles wait: before what a fork in front of it would have them hold beside."""
    return {
        index: index - (index > 0 and isinstance(operations[index - 1], Fork))
        for index, operation in enumerate(operations)
        if isinstance(operation, Normalize)
    }
