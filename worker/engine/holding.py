"""Where decode tiles wait for each other: what is held of them, and what is computed once more.

Before every normalisation all tiles are walked up to it from where they are held. On the way each may be
held anew, behind one operation. Held near to the next normalisation there is less to compute; behind an
operation that enlarges there is four times as much to hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from worker.engine.decoder import Fork, Join, Local, Normalize, Operation, Trim
from worker.engine.grid import Tile

# Seconds on one H100; only their proportions count.
_FLOP_S = 1 / 400e12
_BYTE_S = 1 / 2e12  # of the device's own memory
_MOVE_S = 1 / 50e9  # a byte to main memory, or back
_LOCK_S = 0.4e-9  # a byte of main memory to be page-locked, before the first time
_RENT_S = 0.2 / 2**30  # a byte of the device held must save: others have a use for it, too


@dataclass(frozen=True, slots=True)
class Site:
    """All of some tiles behind one operation.

    Args:
        size_bytes: of what there is of them, halo and what is set aside included.
        work_s: what that operation takes for all of them, seconds.
        open: whether a tile can be held here at no extra cost: not right behind a fork.
    """

    size_bytes: int
    work_s: float
    open: bool = True


def survey(
    operations: Sequence[Operation],
    channels: Sequence[int],
    tiles: Sequence[Tile],
    canvas: tuple[int, int, int],
    halo: int,
    itemsize: int,
) -> list[Site]:
    """One site in front of the first operation, then one behind each.

    Args:
        channels: of each operation's output.
        canvas: (C, H, W) in front of the first operation; the tiles lie on it.
        halo: of the tiles, pixels of that canvas.
        itemsize: bytes of a number.
    """
    depth, aside, scale = canvas[0], 0, 1
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
        pixels = sum(
            _count_pixels(tile.scaled(scale), halo, canvas[1] * scale, canvas[2] * scale) for tile in tiles
        )
        work_s = pixels * (flop * _FLOP_S + passes * depth * itemsize * _BYTE_S)
        sites.append(Site(pixels * (depth + aside) * itemsize, work_s, not isinstance(operation, Fork)))
    return sites


def _find_join(operations: Sequence[Operation], channels: Sequence[int], start: int) -> int:
    """Channels of what a fork sets aside: those of the sum that it will be part of."""
    return next(channels[i] for i in range(start, len(operations)) if isinstance(operations[i], Join))


def _count_pixels(tile: Tile, halo: int, height: int, width: int) -> int:
    rows = min(tile.top + tile.height + halo, height) - max(tile.top - halo, 0)
    columns = min(tile.left + tile.width + halo, width) - max(tile.left - halo, 0)
    return rows * columns


def choose_holds(sites: Sequence[Site], stops: Sequence[int], device_bytes: int) -> list[int | None]:
    """For each walk up to a stop, behind how many operations every tile is held on the way; None: as it was.

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
            walked = spent + moved[held] * _MOVE_S + reached[stop] - reached[held]
            for place in (held, *(each for each in places if held < each <= stop)):
                total = walked + (moved[place] * (_MOVE_S + _LOCK_S) if place > held else 0)
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
