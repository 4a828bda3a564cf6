"""The canvas as it is now, as JPEG cells of one fixed grid."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Literal

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
import torch
from torch import Tensor

from api_schemas.events import TilePreviewedData
from api_schemas.layout import PREVIEW_CELL_PX
from worker.adapters.preview_map import PreviewMap
from worker.engine.canvas import Plane, Rectangle
from worker.engine.resample import enlarge
from worker.process.protocol import PreviewCell

_SHRINK = 2  # decoded pixels per preview pixel and axis
_QUALITY = 80

_Key = tuple[int, int]  # (row, column) of a cell


class PreviewCanvas:
    """What a viewer sees: colours of the latent while tiles are denoised, pixels at half size once decoded.

    Cells do not follow tiles, which move and wrap: the newest JPEGs of all cells together show the
    whole canvas.

    Args:
        height: of the canvas, latent pixels; so is `width`.
        scale: pixels of the picture per latent pixel.
        shown: (height, width) of the picture, the canvas' top left part, in pixels; None: all of it.
    """

    def __init__(
        self,
        height: int,
        width: int,
        scale: int,
        colors: PreviewMap,
        shown: tuple[int, int] | None = None,
    ) -> None:
        self._grid = _CellGrid(
            max(PREVIEW_CELL_PX // scale, 1), scale, shown or (height * scale, width * scale)
        )
        self._colors = PreviewMap(colors.weight.float().cpu(), colors.bias.float().cpu()[:, None, None])
        self._size = height, width
        self._estimate = np.zeros((height, width, 3), np.uint8)
        self._decoded = _DecodedRows(self._grid)
        self._changed: dict[_Key, None] = {}
        self._finished: list[PreviewCell] = []
        self._step = 0

    def resize(self, height: int, width: int) -> None:
        """Continue with a canvas of another size, which shows what was painted before, enlarged."""
        if self._estimate.shape[:2] != (height, width):
            self._estimate = _enlarge(self._estimate, height, width, Rectangle(0, 0, height, width))

    def paint(self, tile: Rectangle, clean: Tensor, step: int) -> None:
        """Put the clean estimate (C, h, w) of a tile onto the canvas."""
        colors = torch.einsum("rc,chw->rhw", self._colors.weight, clean.float().cpu()) + self._colors.bias
        levels = (colors.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        self._step = step
        for outer, inner in Plane(len(self._estimate), len(self._estimate[0])).pieces(tile):
            self._estimate[outer.top : outer.top + outer.height, outer.left : outer.left + outer.width] = (
                levels[inner.top : inner.top + inner.height, inner.left : inner.left + inner.width]
            )
            self._mark(outer)

    def paint_rows(self, top_px: int, rows: np.ndarray) -> None:
        """Put finished rows (h, W, 3) onto the canvas; they come from the top, without a gap."""
        for key, pixels in self._decoded.add(top_px, rows):
            self._changed.pop(key, None)
            self._finished.append(self._grid.encode(key, pixels, "decode", self._step))

    def take(self, max_bytes: int) -> tuple[PreviewCell, ...]:
        """Take changed cells, decoded ones first, the oldest change first, until they have `max_bytes`."""
        taken: list[PreviewCell] = []
        size = 0
        while size < max_bytes and (self._finished or self._changed):
            cell = self._finished.pop(0) if self._finished else self._cut_estimate(self._take_changed())
            taken.append(cell)
            size += len(cell.jpeg)
        return tuple(taken)

    def _mark(self, rectangle: Rectangle) -> None:
        rows = self._cells_under(rectangle.top, rectangle.height, 0)
        columns = self._cells_under(rectangle.left, rectangle.width, 1)
        for row, column in product(rows, columns):
            self._changed[row, column] = None

    def _cells_under(self, start: int, extent: int, axis: int) -> range:
        """Cells of the picture along one axis of the present canvas."""
        length, whole = self._estimate.shape[axis], self._size[axis]
        cell, shown = self._grid.cell, ceil(self._grid.shown[axis] / self._grid.scale)
        last = min(((start + extent) * whole - 1) // length, shown - 1)
        return range(start * whole // length // cell, last // cell + 1)

    def _take_changed(self) -> _Key:
        key = next(iter(self._changed))
        del self._changed[key]
        return key

    def _cut_estimate(self, key: _Key) -> PreviewCell:
        (row, column), cell, scale = key, self._grid.cell, self._grid.scale
        height_px, width_px = self._grid.measure(key)
        part = Rectangle(row * cell, column * cell, ceil(height_px / scale), ceil(width_px / scale))
        return self._grid.encode(key, _enlarge(self._estimate, *self._size, part), "denoise", self._step)


@dataclass(frozen=True, slots=True)
class _CellGrid:
    """Cells of a picture.

    Args:
        cell: side of a cell, latent pixels.
        scale: pixels per latent pixel.
        shown: (height, width) of the picture, pixels.
    """

    cell: int
    scale: int
    shown: tuple[int, int]

    @property
    def cell_px(self) -> int:
        return self.cell * self.scale

    def measure(self, key: _Key) -> tuple[int, int]:
        """(height, width) of a cell, pixels; the last row and column may be smaller."""
        (row, column), (height, width) = key, self.shown
        return min(self.cell_px, height - row * self.cell_px), min(
            self.cell_px, width - column * self.cell_px
        )

    def encode(
        self, key: _Key, pixels: np.ndarray, phase: Literal["denoise", "decode"], step: int
    ) -> PreviewCell:
        (row, column), (height_px, width_px) = key, self.measure(key)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorspace="RGB")
        data = TilePreviewedData(
            left_px=column * self.cell_px,
            top_px=row * self.cell_px,
            width_px=width_px,
            height_px=height_px,
            phase=phase,
            step=step,
        )
        return PreviewCell(data, jpeg)


class _DecodedRows:
    """Collects decoded rows, at half size, until a row of cells is complete."""

    def __init__(self, grid: _CellGrid) -> None:
        self._grid = grid
        self._pixels = np.zeros((grid.cell_px // _SHRINK + 1, ceil(grid.shown[1] / _SHRINK), 3), np.uint8)

    def add(self, top_px: int, rows: np.ndarray) -> Iterator[tuple[_Key, np.ndarray]]:
        """Add rows (h, W, 3); all cells that they complete, as views."""
        while len(rows):
            row, offset = divmod(top_px, self._grid.cell_px)
            height = min(self._grid.cell_px - offset, len(rows))
            yield from self._add_to_row(row, offset // _SHRINK, _shrink(rows[:height]))
            rows, top_px = rows[height:], top_px + height

    def _add_to_row(self, row: int, top: int, pixels: np.ndarray) -> Iterator[tuple[_Key, np.ndarray]]:
        self._pixels[top : top + len(pixels)] = pixels
        height = ceil(self._grid.measure((row, 0))[0] / _SHRINK)
        if top + len(pixels) < height:
            return
        side = self._grid.cell_px // _SHRINK
        for column in range(ceil(self._pixels.shape[1] / side)):
            yield (row, column), self._pixels[:height, column * side : (column + 1) * side]


def _enlarge(pixels: np.ndarray, height: int, width: int, part: Rectangle) -> np.ndarray:
    """A part of `pixels` (h, w, 3) enlarged to that size."""
    if pixels.shape[:2] == (height, width):
        return pixels[part.top : part.top + part.height, part.left : part.left + part.width]
    source = torch.as_tensor(pixels).permute(2, 0, 1)
    larger = enlarge(source, Plane(height, width), part)
    return larger.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _shrink(rows: np.ndarray) -> np.ndarray:
    """The mean of every 2 x 2 pixels; an odd last row or column counts twice.

    Sums of strided halves: numpy's own mean over two axes takes seven times as long.
    """
    odd = [(0, side % _SHRINK) for side in rows.shape[:2]]
    rows = np.pad(rows, [*odd, (0, 0)], mode="edge") if odd != [(0, 0)] * 2 else rows
    sums = rows[0::2].astype(np.uint16)
    sums += rows[1::2]
    sums = sums[:, 0::2] + sums[:, 1::2]
    return (sums >> 2).astype(np.uint8)
