"""Where tiles lie on a canvas, at which step. All sizes are latent pixels."""

from dataclasses import dataclass
from itertools import product
from math import ceil

from worker.engine.canvas import Plane, Rectangle
from worker.engine.errors import GridError

# Roberts' R2 sequence, the plane's golden ratio: any few shifts in a row lie far apart.
# M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences" (2018).
_R2 = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Equal tiles that together cover every pixel of a canvas."""

    canvas: Plane
    tiles: tuple[Rectangle, ...]

    @classmethod
    def lay(
        cls, canvas: Plane, *, tile_size: int, overlap: int = 0, shift: tuple[int, int] = (0, 0)
    ) -> "TileGrid":
        """Lay tiles of `tile_size`, or of the canvas' side where that is smaller.

        On an axis that does not wrap, the first and last tile are pulled back onto the canvas.

        Args:
            overlap: pixels that neighbours share at least.
            shift: moves the grid down and right.

        Raises:
            GridError: overlap leaves no stride.
        """
        if not 0 <= overlap < tile_size:
            raise GridError(f"overlap {overlap} must be at least 0 and less than tile_size {tile_size}")
        height, width = (min(tile_size, side) for side in canvas.size)
        # A tile that the canvas cuts short shares as much of itself as a whole one does.
        tops, lefts = (
            _starts(side, tile, overlap * tile // tile_size, wraps, moved)
            for side, tile, wraps, moved in zip(canvas.size, (height, width), canvas.wrap, shift, strict=True)
        )
        return cls(canvas, tuple(Rectangle(top, left, height, width) for top, left in product(tops, lefts)))


def shift_at(index: int, canvas: Plane, tile_size: int, seed: int) -> tuple[int, int]:
    """How far a moving grid has moved (down, right) at step `index`.

    On an axis that does not wrap a shifted grid needs one tile more, so there the axes take turns: every
    step costs the same.
    """
    down, right = (int((seed % 997 / 997 + index * ratio) % 1.0 * tile_size) for ratio in _R2)
    moves = [wraps or index % 2 == axis for axis, wraps in enumerate(canvas.wrap)]
    return down * moves[0], right * moves[1]


def _starts(length: int, tile: int, overlap: int, wraps: bool, shift: int) -> list[int]:
    stride = max(1, tile - overlap)
    if wraps:
        return _wrapping_starts(length, stride, shift)
    if shift % stride == 0:
        return _even_starts(length - tile, stride)
    last = length - tile
    first = shift % stride - stride
    return sorted({min(max(start, 0), last) for start in range(first, last + stride, stride)})


def _wrapping_starts(length: int, stride: int, shift: int) -> list[int]:
    count = ceil(length / stride)
    return [(shift + index * length // count) % length for index in range(count)]


def _even_starts(last: int, stride: int) -> list[int]:
    count = ceil(last / stride)
    return [0, *((index + 1) * last // count for index in range(count))]
