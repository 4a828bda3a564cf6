"""Regions as numbers: how much each prompt counts at each pixel of a canvas.

Shared by the worker, which blends predictions with them, and the service, which counts those predictions. Nothing
else imports it: it needs NumPy and Pillow, which clients do not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from api_schemas.regions import MaskPart, Point, Region

Weights = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8]
Masks = Mapping[MaskPart, Image.Image]
"""Mask pictures, of any size and mode; lightness counts."""

_FINENESS = 4  # drawn so many times finer in each axis, then averaged: edges are antialiased
# Of 255. A weight that nobody could see would cost a prediction of each tile that it touches.
_LEAST = 3


@dataclass(frozen=True, slots=True)
class MaskGrid:
    """Where masks are sampled.

    Args:
        size: (height, width) of the canvas, in cells: latent pixels, or coarser ones.
        shown: cells of the canvas' (height, width) that the picture covers, from the top left corner.
        picture_px: (height, width) of the picture.
        wrap: whether the canvas continues into itself, (vertically, horizontally).
    """

    size: tuple[int, int]
    shown: tuple[float, float]
    picture_px: tuple[int, int]
    wrap: tuple[bool, bool]

    @property
    def fine_size(self) -> tuple[int, int]:
        """(height, width) at which a shape is drawn on the picture."""
        height, width = (max(round(side * _FINENESS), 1) for side in self.shown)
        return height, width

    @property
    def scale(self) -> tuple[float, float]:
        """Cells per pixel of the picture, (vertically, horizontally)."""
        return self.shown[0] / self.picture_px[0], self.shown[1] / self.picture_px[1]


def weigh_prompts(regions: Sequence[Region], grid: MaskGrid, masks: Masks) -> Weights:
    """Weights of the request's own prompt and of each region's, (1 + regions, height, width); their sum is one.

    With a = weight x mask of each region: the regions share a pixel in proportion to a, and where Σ a < 1 the
    request's own prompt has the rest.
    """
    weights = np.empty((1 + len(regions), *grid.size), np.float32)
    for index, region in enumerate(regions, start=1):
        levels = rasterize(region, grid, masks)
        weights[index] = np.where(levels < _LEAST, 0, levels) * np.float32(region.weight / 255)
    covered = weights[1:].sum(0)
    left = 1 - covered
    weights[0] = np.where(left < _LEAST / 255, 0, left)
    weights /= covered + weights[0]
    return weights


def rasterize(region: Region, grid: MaskGrid, masks: Masks) -> Levels:
    """The mask of one region, (height, width), 0 to 255, feathered.

    What of the canvas lies beyond the picture continues its edge, so that a region that ends with the picture
    covers the canvas to its end.
    """
    height, width = grid.fine_size
    if region.shape.mask is not None:
        fine = scale_mask(masks[region.shape.mask], height, width)
    else:
        fine = _draw(region.shape.list_corners(), grid)
    return _feather(_reduce(fine, grid), region.feather_px, grid)


def draw_shape(corners: Sequence[Point], grid: MaskGrid) -> Levels:
    """A polygon of pixels of the picture, (height, width), 0 to 255."""
    return np.asarray(_reduce(_draw(corners, grid), grid))


def _draw(corners: Sequence[Point], grid: MaskGrid) -> Levels:
    down, right = (_FINENESS * scale for scale in grid.scale)
    return fill_polygon([(x * right, y * down) for x, y in corners], *grid.fine_size)


def _reduce(fine: Levels, grid: MaskGrid) -> Image.Image:
    """To cells, of the whole canvas."""
    below, beside = (max(grid.size[axis] * _FINENESS - fine.shape[axis], 0) for axis in (0, 1))
    return Image.fromarray(np.pad(fine, ((0, below), (0, beside)), mode="edge")).reduce(_FINENESS)


def scale_mask(mask: Image.Image, height: int, width: int) -> Levels:
    """Means of its pixels, or what lies between them where there are too few."""
    enough = mask.height >= height and mask.width >= width
    way = Image.Resampling.BOX if enough else Image.Resampling.BILINEAR
    return np.asarray(mask.convert("L").resize((width, height), way))


def fill_polygon(corners: Sequence[tuple[float, float]], height: int, width: int) -> Levels:
    """255 where the middle of a pixel lies within a polygon of corners (x, y), (height, width).

    Of two polygons with a common edge, each pixel along it is in exactly one; Pillow fills it in both.
    """
    flips = np.zeros((height, width + 1), bool)
    middles = np.arange(height) + 0.5
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], *corners[:1]], strict=True):
        rows = np.flatnonzero((middles >= min(y0, y1)) & (middles < max(y0, y1)))
        if len(rows):
            crossings = x0 + (middles[rows] - y0) * (x1 - x0) / (y1 - y0)
            flips[rows, np.ceil(crossings - 0.5).astype(int).clip(0, width)] ^= True
    inside: npt.NDArray[np.bool_] = np.logical_xor.accumulate(flips[:, :width], axis=1)
    return inside.astype(np.uint8) * np.uint8(255)


def _feather(image: Image.Image, feather_px: int, grid: MaskGrid) -> Levels:
    """Blurred along both axes, each by two boxes, which together reach as far as the feather and no farther."""
    down, right = (max(feather_px * scale - 1, 0) / 2 for scale in grid.scale)
    if not down and not right:
        return np.asarray(image)
    margins = [
        (int(2 * radius) + 2 if wraps else 0,) * 2
        for radius, wraps in zip((down, right), grid.wrap, strict=True)
    ]
    ring = Image.fromarray(np.pad(np.asarray(image), margins, mode="wrap"))
    for _ in range(2):
        ring = ring.filter(ImageFilter.BoxBlur((right, down)))
    (top, _), (left, _) = margins
    return np.asarray(ring)[top : top + image.height, left : left + image.width]
