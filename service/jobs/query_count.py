"""How many predictions a picture with regions takes: each tile under each prompt that counts in it.

The grids of worker/engine/grid.py, laid for the request's seed, on masks that are as fine as the engine's or, for
large canvases, a little coarser.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
from PIL import Image

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest
from api_schemas.layout import Stage, Tiling
from api_schemas.region_masks import MaskGrid, draw_shape, scale_mask, weigh_prompts
from api_schemas.regions import MaskPart, name_masks
from api_schemas.source import Size, place_source

_MOST_CELLS = 4_000_000  # of all prompts' masks together: 16 MB, a tenth of a second
_R2 = (0.7548776662466927, 0.5698402909980532)  # as in worker/engine/grid.py
_ANYWHERE = Image.new("L", (1, 1), 128)  # a mask that nobody has looked at yet

Span = tuple[int, int]
"""(start, end) on one axis of a canvas; the end may lie beyond the edge of one that wraps."""


def count_queries(
    request: ResolvedRequest,
    card: ModelCard,
    stages: list[Stage],
    source: Size | None = None,
    masks: Mapping[MaskPart, Image.Image] | None = None,
) -> list[int]:
    """Tile predictions of each stage, over all its steps.

    Args:
        source: (width, height) of the picture that it begins with.
        masks: mask pictures; one that is missing counts as if it, and what it leaves, were everywhere.
    """
    pictures: dict[MaskPart, Image.Image] = {
        part: (masks or {}).get(part, _ANYWHERE) for part in ("mask_image", *name_masks(request.regions))
    }
    canvas = stages[-1]
    shown = request.height_px / canvas.height_px, request.width_px / canvas.width_px
    return [_count_stage(request, card.vae_scale, stage, shown, pictures, source) for stage in stages]


def _count_stage(
    request: ResolvedRequest,
    scale: int,
    stage: Stage,
    shown: tuple[float, float],
    masks: Mapping[MaskPart, Image.Image],
    source: Size | None,
) -> int:
    latent = stage.height_px // scale, stage.width_px // scale
    prompts = 1 + len(request.regions)
    coarseness = ceil(sqrt(latent[0] * latent[1] * prompts / _MOST_CELLS))
    size = ceil(latent[0] / coarseness), ceil(latent[1] / coarseness)
    covered = latent[0] * shown[0] / coarseness, latent[1] * shown[1] / coarseness
    grid = MaskGrid(size, covered, (request.height_px, request.width_px), stage.tiling.wrap)
    crossed = weigh_prompts(request.regions, grid, masks) > 0
    if (
        source is not None
        and request.upscale is None
        and (inpainted := find_inpainted(request, source, grid, masks)) is not None
    ):
        crossed &= inpainted
    counter = _Counter.lay(crossed, coarseness)
    axes = _Axes(latent, stage.tiling, scale, request.seed)
    return sum(
        stage.count_rounds(index) * counter.count(*axes.lay(index, stage.steps))
        for index in range(stage.steps)
    )


def find_inpainted(
    request: ResolvedRequest, source: Size, grid: MaskGrid, masks: Mapping[MaskPart, Image.Image]
) -> npt.NDArray[np.bool_] | None:
    """Which cells are inpainted, (height, width); None: the source is not kept anywhere."""
    assert request.source is not None
    place = place_source(request.source, source, (request.width_px, request.height_px))
    if request.mask is None and place.covers((request.width_px, request.height_px)):
        return None
    right, bottom = place.left + place.width, place.top + place.height
    corners = [(place.left, place.top), (right, place.top), (right, bottom), (place.left, bottom)]
    inpainted = draw_shape(corners, grid) < 255
    if request.mask is not None:
        picture = masks["mask_image"] if request.mask.is_picture else None
        shape = scale_mask(picture, *grid.size) if picture else draw_shape(request.mask.list_corners(), grid)
        inpainted |= shape > 0
    return inpainted


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counts which tiles are crossed by which masks.

    Args:
        sums: of crossed cells above and to the left, (prompts, 2 H + 1, 2 W + 1): Crow 1984's table of a canvas and its
            next copy on each axis, into which a tile of a wrapping canvas may reach.
        coarseness: latent pixels a cell.
    """

    sums: npt.NDArray[np.int32]
    coarseness: int

    @classmethod
    def lay(cls, crossed: npt.NDArray[np.bool_], coarseness: int) -> "_Counter":
        doubled = np.tile(crossed, (1, 2, 2))
        sums = np.zeros((len(doubled), doubled.shape[1] + 1, doubled.shape[2] + 1), np.int32)
        np.cumsum(np.cumsum(doubled, 1, np.int32), 2, out=sums[:, 1:, 1:])
        return cls(sums, coarseness)

    def count(self, rows: list[Span], columns: list[Span]) -> int:
        """Crossings of the tiles that lie at each of these rows and columns."""
        (tops, bottoms), (lefts, rights) = (self._to_cells(spans) for spans in (rows, columns))
        above, below = self.sums[:, tops], self.sums[:, bottoms]
        inside = below[:, :, rights] - below[:, :, lefts] - above[:, :, rights] + above[:, :, lefts]
        return int((inside > 0).sum())

    def _to_cells(self, spans: list[Span]) -> tuple[list[int], list[int]]:
        size = self.coarseness
        return [start // size for start, _ in spans], [ceil(end / size) for _, end in spans]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where tiles lie along the two axes of a stage's canvas, latent pixels."""

    lengths: tuple[int, int]
    tiling: Tiling
    scale: int
    seed: int

    def lay(self, index: int, steps: int) -> Iterator[list[Span]]:
        """Of step `index`: rows, then columns."""
        tiling, size = self.tiling, self.tiling.tile_size_px // self.scale
        outer = tiling.is_outer(index, steps)
        overlap = (tiling.outer_overlap_px if outer else tiling.overlap_px) // self.scale
        for axis, length in enumerate(self.lengths):
            wraps, tile = tiling.wrap[axis], min(size, length)
            turn = index % 2 == axis and not (outer and overlap)
            moves = tiling.moving and (wraps or turn)
            shift = int((self.seed % 997 / 997 + index * _R2[axis]) % 1.0 * size) if moves else 0
            stride = max(1, tile - overlap * tile // size)
            yield [(start, start + tile) for start in _list_starts(length, tile, stride, shift, wraps)]


def _list_starts(length: int, tile: int, stride: int, shift: int, wraps: bool) -> list[int]:
    if wraps:
        count = ceil(length / stride)
        return [(shift + index * length // count) % length for index in range(count)]
    last, first = length - tile, shift % stride
    if first == 0:
        count = ceil(last / stride)
        return [0, *((index + 1) * last // count for index in range(count))]
    return sorted({min(max(start, 0), last) for start in range(first - stride, last + stride, stride)})
