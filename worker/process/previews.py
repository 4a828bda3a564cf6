"""The canvas as it stands, cut into JPEG cells that lie on one fixed grid."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Literal

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from api_schemas.layout import PREVIEW_CELL_PX
from worker.adapters.preview_map import PreviewMap
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import TilePredicted
from worker.engine.upscale import enlarge
from worker.process.protocol import PreviewCell

_CRISP = 2  # decoded pixels per preview pixel and axis
_QUALITY = 80


class PreviewCanvas:
    """What a viewer should see: latent colours while tiles are denoised, half-size pixels once decoded.

    Cells do not follow tiles, which move and wrap, so every cell's newest JPEG together are the
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
        self._scale = scale
        self._cell = max(PREVIEW_CELL_PX // scale, 1)
        self._weight = colors.weight.float().cpu()
        self._bias = colors.bias.float().cpu()[:, None, None]
        self._height, self._width = height, width
        self._shown = shown or (height * scale, width * scale)
        self._rough = np.zeros((height, width, 3), np.uint8)
        crisp_width = ceil(self._shown[1] / _CRISP)
        self._crisp = np.zeros((self._cell * scale // _CRISP + 1, crisp_width, 3), np.uint8)
        self._dirty: dict[tuple[int, int], None] = {}
        self._ready: list[PreviewCell] = []
        self._step = 0

    def begin(self, height: int, width: int) -> None:
        """Go on with a canvas of another size, which shows what was painted before, enlarged."""
        if self._rough.shape[:2] != (height, width):
            self._rough = _enlarge(self._rough, height, width, Rectangle(0, 0, height, width))

    def paint(self, tile: Rectangle, clean: Tensor, step: int) -> None:
        """Put the clean estimate (C, h, w) of a tile onto the canvas."""
        colors = torch.einsum("rc,chw->rhw", self._weight, clean.float().cpu()) + self._bias
        levels = (colors.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        self._step = step
        for outer, inner in Plane(len(self._rough), len(self._rough[0])).pieces(tile):
            self._rough[outer.top : outer.top + outer.height, outer.left : outer.left + outer.width] = levels[
                inner.top : inner.top + inner.height, inner.left : inner.left + inner.width
            ]
            self._mark(outer)

    def paint_rows(self, top_px: int, rows: np.ndarray) -> None:
        """Put finished rows (h, W, 3) onto the canvas; they come from the top, without a gap."""
        cell_px = self._cell * self._scale
        bottom_px = top_px + len(rows)
        while top_px < bottom_px:
            row, offset = divmod(top_px, cell_px)
            height = min(cell_px - offset, bottom_px - top_px)
            self._paint_cell_row(row, offset, _shrink(rows[:height]))
            rows, top_px = rows[height:], top_px + height

    def take(self, max_bytes: int) -> tuple[PreviewCell, ...]:
        """Take changed cells, longest waiting first, until they weigh `max_bytes`."""
        taken: list[PreviewCell] = []
        weight = 0
        while weight < max_bytes and (self._ready or self._dirty):
            cell = self._ready.pop(0) if self._ready else self._cut_rough(self._next_dirty())
            taken.append(cell)
            weight += len(cell.jpeg)
        return tuple(taken)

    def _mark(self, rectangle: Rectangle) -> None:
        rows = self._cells_under(rectangle.top, rectangle.height, self._rough.shape[0], 0)
        columns = self._cells_under(rectangle.left, rectangle.width, self._rough.shape[1], 1)
        for row, column in product(rows, columns):
            self._dirty[row, column] = None

    def _cells_under(self, start: int, extent: int, length: int, axis: int) -> range:
        """Those of the picture, on an axis that is of `length` on the present canvas."""
        whole, shown = (self._height, self._width)[axis], ceil(self._shown[axis] / self._scale)
        last = min(((start + extent) * whole - 1) // length, shown - 1)
        return range(start * whole // length // self._cell, last // self._cell + 1)

    def _next_dirty(self) -> tuple[int, int]:
        key = next(iter(self._dirty))
        del self._dirty[key]
        return key

    def _cut_rough(self, key: tuple[int, int]) -> PreviewCell:
        (row, column), cell, scale = key, self._cell, self._scale
        height_px, width_px = self._measure(key)
        part = Rectangle(row * cell, column * cell, ceil(height_px / scale), ceil(width_px / scale))
        return self._encode(key, _enlarge(self._rough, self._height, self._width, part), "denoise")

    def _measure(self, key: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a cell, pixels."""
        cell_px, (height, width) = self._cell * self._scale, self._shown
        return min(cell_px, height - key[0] * cell_px), min(cell_px, width - key[1] * cell_px)

    def _paint_cell_row(self, row: int, offset: int, pixels: np.ndarray) -> None:
        start = offset // _CRISP
        self._crisp[start : start + len(pixels)] = pixels
        expected = ceil(self._measure((row, 0))[0] / _CRISP)
        if start + len(pixels) < expected:
            return
        side = self._cell * self._scale // _CRISP
        for column in range(ceil(len(self._crisp[0]) / side)):
            self._dirty.pop((row, column), None)
            pixels = self._crisp[:expected, column * side : (column + 1) * side]
            self._ready.append(self._encode((row, column), pixels, "decode"))

    def _encode(
        self, key: tuple[int, int], pixels: np.ndarray, stage: Literal["denoise", "decode"]
    ) -> PreviewCell:
        (row, column), (height_px, width_px) = key, self._measure(key)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorspace="RGB")
        return PreviewCell(
            left_px=column * self._cell * self._scale,
            top_px=row * self._cell * self._scale,
            width_px=width_px,
            height_px=height_px,
            stage=stage,
            step=self._step,
            jpeg=jpeg,
        )


def _enlarge(pixels: np.ndarray, height: int, width: int, part: Rectangle) -> np.ndarray:
    """A part of `pixels` (h, w, 3) as it would be at that size; the same, if it has it."""
    if pixels.shape[:2] == (height, width):
        return pixels[part.top : part.top + part.height, part.left : part.left + part.width]
    source = torch.from_numpy(pixels).permute(2, 0, 1)
    larger = enlarge(source, Plane(height, width), part)
    return larger.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _shrink(rows: np.ndarray) -> np.ndarray:
    """The mean of every 2 x 2 pixels; an odd last row or column counts twice.

    Sums of strided halves: numpy's own mean over two axes takes seven times as long.
    """
    odd = [(0, side % _CRISP) for side in rows.shape[:2]]
    rows = np.pad(rows, [*odd, (0, 0)], mode="edge") if odd != [(0, 0)] * 2 else rows
    sums = rows[0::2].astype(np.uint16)
    sums += rows[1::2]
    sums = sums[:, 0::2] + sums[:, 1::2]
    return (sums >> 2).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A tile, its copy in main memory, and the sign that the copy is whole; none where it was made there."""

    tile: TilePredicted
    clean: Tensor
    whole: torch.cuda.Event | None


class Arrivals:
    """To ask a GPU for a tile would drain its queue, and it would stand still until the host has more for it.

    So each tile's copy is queued behind its making, and painted when it is found to be there: usually
    one batch later.
    """

    def __init__(self) -> None:
        self._expected: deque[_Arrival] = deque()

    def expect(self, tile: TilePredicted) -> None:
        if not tile.clean.is_cuda:
            self._expected.append(_Arrival(tile, tile.clean, None))
            return
        clean = torch.empty(tile.clean.shape, dtype=tile.clean.dtype, pin_memory=True)
        clean.copy_(tile.clean, non_blocking=True)
        whole = torch.cuda.Event()
        whole.record()
        self._expected.append(_Arrival(tile, clean, whole))

    def take(self, *, wait: bool = False) -> Iterator[tuple[TilePredicted, Tensor]]:
        """Tiles that are there, in the order in which they were predicted, each with its clean estimate (C, h, w)."""
        while self._expected:
            first = self._expected[0]
            if first.whole is not None and wait:
                first.whole.synchronize()
            elif first.whole is not None and not first.whole.query():
                return
            self._expected.popleft()
            yield first.tile, first.clean
