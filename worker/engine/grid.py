"""Where tiles lie on a canvas. All sizes are latent pixels, order (height, width), (top, left)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil

from torch import Tensor

from worker.engine.errors import GridError


@dataclass(frozen=True, slots=True)
class Tile:
    """A denoising window. On a wrapping axis it may run over the edge and go on at the other side."""

    top: int
    left: int
    height: int
    width: int

    def pieces(self, height: int, width: int) -> Iterator[tuple["Tile", "Tile"]]:
        """The one, two or four rectangles that make up this tile on a canvas of that size.

        Yields:
            (where on the canvas, where in the tile).
        """
        rows = _spans(self.top, self.height, height)
        columns = _spans(self.left, self.width, width)
        for (top, inner_top, rise), (left, inner_left, run) in product(rows, columns):
            yield Tile(top, left, rise, run), Tile(inner_top, inner_left, rise, run)

    def scaled(self, scale: int) -> "Tile":
        return Tile(self.top * scale, self.left * scale, self.height * scale, self.width * scale)

    def slice(self, canvas: Tensor) -> Tensor:
        """The view of (..., H, W) under this rectangle, which must not wrap."""
        return canvas[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def crop(self, canvas: Tensor) -> Tensor:
        """The latent inside this tile, (..., height, width); a copy."""
        crop = canvas.new_empty(*canvas.shape[:-2], self.height, self.width)
        for outer, inner in self.pieces(canvas.shape[-2], canvas.shape[-1]):
            inner.slice(crop).copy_(outer.slice(canvas))
        return crop


def _spans(start: int, extent: int, length: int) -> list[tuple[int, int, int]]:
    """(start on the axis, start in the tile, extent) of each piece; one piece unless the tile wraps."""
    first = min(extent, length - start)
    return [(start, 0, first)] if first == extent else [(start, 0, first), (0, first, extent - first)]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Equal tiles that together cover every pixel of a canvas."""

    height: int
    width: int
    tiles: tuple[Tile, ...]

    @classmethod
    def lay(
        cls,
        height: int,
        width: int,
        *,
        tile_size: int,
        overlap: int = 0,
        wrap: tuple[bool, bool] = (False, False),
        shift: tuple[int, int] = (0, 0),
    ) -> "TileGrid":
        """Lay tiles of `tile_size`, or of the canvas' side where that is smaller.

        On an axis that does not wrap, the first and last tile are pulled back onto the canvas.

        Args:
            overlap: pixels that neighbours share at least.
            wrap: whether the canvas continues into itself, (vertically, horizontally).
            shift: moves the grid down and right.

        Raises:
            GridError: overlap leaves no stride.
        """
        if not 0 <= overlap < tile_size:
            raise GridError(f"overlap {overlap} must be at least 0 and less than tile_size {tile_size}")
        tile_height, tile_width = min(tile_size, height), min(tile_size, width)
        # A tile that the canvas cuts short shares as much of itself as a whole one does.
        tops = _starts(height, tile_height, overlap * tile_height // tile_size, wrap[0], shift[0])
        lefts = _starts(width, tile_width, overlap * tile_width // tile_size, wrap[1], shift[1])
        tiles = tuple(Tile(top, left, tile_height, tile_width) for top, left in product(tops, lefts))
        return cls(height, width, tiles)


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
