"""The tile grid of a canvas: the worker denoises by it, and the cost of a job is counted by it."""

from collections import Counter
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from api_schemas.generation import GenerationRequest

_SHARED = 4  # by default a quarter of a tile is shared where borders do not move, and in the outer steps
_OUTER_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Tiling:
    """Every choice made. Pixels, order (height, width).

    Args:
        overlap_px: what neighbours share at least; `outer_overlap_px` the same in the outer steps.
        outer_shares: how much of the steps is outer, at the (beginning, end).
        wrap: whether the canvas continues into itself, (vertically, horizontally).
        moving: whether the grid is shifted at every step. Axes that do not wrap take turns.
    """

    tile_size_px: int
    overlap_px: int
    outer_overlap_px: int
    outer_shares: tuple[float, float]
    wrap: tuple[bool, bool]
    moving: bool

    def count_tiles(self, height_px: int, width_px: int, steps: int, scale: int) -> int:
        """Tile predictions over all steps; their mean where it depends on the shifts, which the seed decides.

        Args:
            scale: pixels per latent pixel: a grid is laid, and shifted, in whole ones.
        """
        lengths = height_px // scale, width_px // scale
        kinds = Counter((self._is_outer(index, steps), index % 2) for index in range(steps))
        return round(sum(n * self._count(lengths, scale, *kind) for kind, n in kinds.items()))

    def _is_outer(self, index: int, steps: int) -> bool:
        first, last = (ceil(steps * share) for share in self.outer_shares)
        return index < first or steps - 1 - index < last

    def _count(self, lengths: tuple[int, int], scale: int, outer: bool, turn: int) -> float:
        """Tiles of one step, at which the axis `turn` is shifted."""
        size = self.tile_size_px // scale
        overlap = (self.outer_overlap_px if outer else self.overlap_px) // scale
        rows, columns = (
            _count_along(lengths[axis], size, overlap, self.wrap[axis], self.moving and axis == turn)
            for axis in (0, 1)
        )
        return rows * columns


def choose_tiling(request: GenerationRequest, tile_size_px: int, *, anchored: bool) -> Tiling:
    """Where the request leaves it open, a moving grid overlaps in its outer steps alone.

    Args:
        anchored: whether it all begins with a picture: its tones are settled, the first steps are not outer.
    """
    moving, asked_px = request.advanced.tile_grid == "moving", request.advanced.overlap_px
    outer_px = tile_size_px // _SHARED if asked_px is None else asked_px
    return Tiling(
        tile_size_px=tile_size_px,
        overlap_px=0 if moving and asked_px is None else outer_px,
        outer_overlap_px=outer_px,
        outer_shares=(0.0 if anchored else _OUTER_SHARE, _OUTER_SHARE),
        wrap=(request.seamless in ("y", "both"), request.seamless in ("x", "both")),
        moving=moving,
    )


def _count_along(length: int, size: int, overlap: int, wraps: bool, shifted: bool) -> float:
    """Tiles along one axis, latent pixels; the mean of all shifts if it is shifted."""
    tile = min(size, length)
    stride = max(1, tile - overlap * tile // size)
    if wraps:
        return ceil(length / stride)
    shifts = range(size) if shifted else range(1)
    return fmean(_count_starts(length - tile, stride, shift % stride) for shift in shifts)


def _count_starts(last: int, stride: int, first: int) -> int:
    """From 0 to `last`: a shifted grid has one at each end, beside those in between."""
    if first == 0 or last == 0:
        return 1 + ceil(last / stride)
    return 2 + max(0, ceil((last - first) / stride))
