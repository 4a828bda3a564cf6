"""The canvas: where rectangles of it lie, and what lies beyond its edges. Order is (height, width), (top, left)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A window of a canvas: a tile, a decode tile, a part. On an axis that wraps it may lie over the edge."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, scale: int) -> "Rectangle":
        return Rectangle(self.top * scale, self.left * scale, self.height * scale, self.width * scale)

    def slice(self, state: Tensor) -> Tensor:
        """The view of (..., H, W) under this rectangle, which must lie within it."""
        return state[..., self.top : self.top + self.height, self.left : self.left + self.width]


Paint = Callable[[Rectangle], Tensor]
"""RGB in [-1, 1], (3, h, w), float32, of a rectangle in pixels; on a wrapping axis it may lie over the edge."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A canvas. What is read or written over its edges goes through here; only grid.py asks whether it wraps, too.

    Args:
        height: so is `width`; latent pixels, or pixels of the picture where a caller scales it.
        wrap: whether the canvas continues into itself, (vertically, horizontally).
    """

    height: int
    width: int
    wrap: tuple[bool, bool] = (False, False)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def whole(self) -> Rectangle:
        return Rectangle(0, 0, self.height, self.width)

    def scaled(self, scale: int) -> "Plane":
        return Plane(self.height * scale, self.width * scale, self.wrap)

    def resized(self, height: int, width: int) -> "Plane":
        """The same canvas at another size."""
        return Plane(height, width, self.wrap)

    def pieces(self, rectangle: Rectangle) -> Iterator[tuple[Rectangle, Rectangle]]:
        """The rectangles within the canvas that make up one that may lie over its edges.

        Yields:
            (where on the canvas, where in the rectangle).
        """
        rows = _split(rectangle.top, rectangle.height, self.height)
        columns = _split(rectangle.left, rectangle.width, self.width)
        for (top, inner_top, height), (left, inner_left, width) in product(rows, columns):
            yield Rectangle(top, left, height, width), Rectangle(inner_top, inner_left, height, width)

    def gather(self, state: Tensor, rectangle: Rectangle) -> Tensor:
        """What of a state (..., H, W) lies in a rectangle, (..., height, width); a copy."""
        crop = state.new_empty(*state.shape[:-2], rectangle.height, rectangle.width)
        for outer, inner in self.pieces(rectangle):
            inner.slice(crop).copy_(outer.slice(state))
        return crop

    def scatter_add(self, state: Tensor, rectangle: Rectangle, values: Tensor) -> None:
        """Add values (..., height, width) to what of a state (..., H, W) lies in a rectangle."""
        for outer, inner in self.pieces(rectangle):
            outer.slice(state).add_(inner.slice(values))

    def halo(self, rectangle: Rectangle, reach: int) -> tuple[Rectangle, Rectangle]:
        """A rectangle with `reach` more pixels on each side: they end at a border, and go round where it wraps.

        Returns:
            (the larger rectangle on the canvas, the given one within it).
        """
        top, bottom = self._reach(rectangle.top, rectangle.height, reach, 0)
        left, right = self._reach(rectangle.left, rectangle.width, reach, 1)
        inner = Rectangle(rectangle.top - top, rectangle.left - left, rectangle.height, rectangle.width)
        return Rectangle(top, left, bottom - top, right - left), inner

    def _reach(self, start: int, extent: int, reach: int, axis: int) -> tuple[int, int]:
        first, last = start - reach, start + extent + reach
        return (first, last) if self.wrap[axis] else (max(first, 0), min(last, self.size[axis]))

    def corner(self, rectangle: Rectangle) -> tuple[int, int]:
        """(top, left) of a rectangle from the canvas' borders; as if in the middle on an axis that has none."""
        top, left = (
            (side - extent) // 2 if wraps else start
            for side, extent, wraps, start in zip(
                self.size,
                (rectangle.height, rectangle.width),
                self.wrap,
                (rectangle.top, rectangle.left),
                strict=True,
            )
        )
        return top, left

    def fold(self, places: Tensor, axis: int) -> Tensor:
        """Places beyond the edges of an axis, brought back: round the ring, or mirrored at a border."""
        length = self.size[axis]
        if self.wrap[axis]:
            return places % length
        mirrored = places % (2 * length)
        return torch.minimum(mirrored, 2 * length - 1 - mirrored)

    def pad(self, state: Tensor, reach: int, axis: int) -> Tensor:
        """A state (..., H, W) with `reach` more pixels at both ends of an axis, as `fold` brings them back."""
        places = torch.arange(-reach, self.size[axis] + reach, device=state.device)
        return state.index_select(axis - 2, self.fold(places, axis))

    def to_ring(self, channel: Tensor) -> Tensor:
        """A channel (H, W) that continues into itself on both axes, (H or 2 H, W or 2 W): mirrored where the canvas ends."""
        for axis in (axis for axis in (0, 1) if not self.wrap[axis]):
            channel = torch.cat([channel, channel.flip(axis)], dim=axis)
        return channel


def _split(start: int, extent: int, length: int) -> list[tuple[int, int, int]]:
    """(start on the axis, start in the rectangle, extent) of each piece; one unless it lies over an edge."""
    pieces: list[tuple[int, int, int]] = []
    done = 0
    while done < extent:
        place = (start + done) % length
        run = min(extent - done, length - place)
        pieces.append((place, done, run))
        done += run
    return pieces
