"""How a picture is divided: into stages of a cascade, tiles of a canvas, and files and frames for viewers."""

from collections import Counter
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import fmean
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.advanced import ALWAYS_GUIDED
from api_schemas.generation import GenerationRequest

# A pyramid tile has one pixel of each neighbour: 512 px in all.
PYRAMID_TILE_PX, PYRAMID_OVERLAP_PX = 510, 1
PREVIEW_CELL_PX = 512  # side of the largest preview
# What one tile may measure at most when the whole of the smallest stage is one: a panorama is not.
_LONGEST_ONE_TILE = 2
_SHARED = 4  # by default a quarter of a tile is shared where borders do not move, and in the outer steps
_OUTER_SHARE = 0.2
# At the end, where a picture takes a style: each tile takes it for itself, and one step does not hide their borders.
_STYLED_OUTER_SHARE = 0.5
_SLACK = 1.1  # a stage enlarges by so much more rather than leave a little for one more stage
_WIDEST_FIRST = 1.25  # and the first one is so much larger than it would be
# Of the bundled model's five steps the first two have all the effect of the conductor: lava, cobbles and bricks at
# 2048² drift in tone by 3.78 of 255 for 3.76 with all five, and 3.96 without it.
_SHARED_STEPS = 0.4
# An inpainted part is made to fit the rest so far into the schedule, once: from pure noise, the first step sees nothing of
# the rest. Without it the bundled model's parts have borders that one sees; with three times they are blurred.
_RESAMPLED_AT = 0.2


Steps = Annotated[int, Field(ge=1, le=200)]


class Cascade(BaseModel):
    """A model's defaults for the stages of a cascade; a request may override them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: list[Steps] = Field(
        default=[30, 15, 12],
        min_length=1,
        description="Steps of each stage, used as ratios: a request's `steps` apply to the first stage."
        " Stages beyond the end of the list use the last value.",
    )
    strength: float = Field(
        default=0.4, ge=0.05, le=1.0, description="Img2img strength of every stage after the first."
    )
    low_band: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Initial strength of the guidance towards the low frequencies of the stage before; 0 is off.",
    )
    enlarges: Literal[2, 4] = Field(
        default=2,
        description="How many times larger a stage's sides are than those of the stage before, at most.",
    )
    conditioned: bool = Field(
        default=False,
        description="Whether the stages after the first are denoised by a network of their own, from pure noise, that"
        " sees the stage before, and are projected back to it; `strength` and `low_band` then do not apply, and guidance,"
        " add-ons and attention are for the first stage.",
    )
    augmentation: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Standard deviation of the noise under which a conditioned stage sees the stage before.",
    )

    def share(self, level: int) -> float:
        """Steps of the stage `level`, counted from 0, over those of the first."""
        return self.steps[min(level, len(self.steps) - 1)] / self.steps[0]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Every choice made. Pixels, order (height, width).

    Args:
        overlap_px: what neighbours share at least; `outer_overlap_px` the same in the outer steps.
        outer_shares: how much of the steps is outer, at the (beginning, end).
        wrap: whether the canvas continues into itself, (vertically, horizontally).
        moving: whether the grid is shifted at every step. Axes that do not wrap take turns, and rest in the outer steps.
    """

    tile_size_px: int
    overlap_px: int
    outer_overlap_px: int
    outer_shares: tuple[float, float]
    wrap: tuple[bool, bool]
    moving: bool

    def count_tiles(
        self, height_px: int, width_px: int, steps: int, scale: int, *, without: range = range(0)
    ) -> int:
        """Tile predictions over all steps; their mean where it depends on the shifts, which the seed decides.

        Args:
            scale: pixels per latent pixel: a grid is laid, and shifted, in whole ones.
            without: steps that are left out.
        """
        lengths = height_px // scale, width_px // scale
        kinds = Counter(
            (self.is_outer(index, steps), index % 2) for index in range(steps) if index not in without
        )
        return round(sum(n * self._count(lengths, scale, *kind) for kind, n in kinds.items()))

    def is_outer(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps` has the outer overlap."""
        first, last = (ceil(steps * share) for share in self.outer_shares)
        return index < first or steps - 1 - index < last

    def _count(self, lengths: tuple[int, int], scale: int, outer: bool, turn: int) -> float:
        """Tiles of one step, at which the axis `turn` is shifted."""
        size = self.tile_size_px // scale
        overlap = (self.outer_overlap_px if outer else self.overlap_px) // scale
        moving = self.moving and not (outer and overlap)
        rows, columns = (
            _count_along(lengths[axis], size, overlap, self.wrap[axis], moving and axis == turn)
            for axis in (0, 1)
        )
        return rows * columns


@dataclass(frozen=True, slots=True)
class StageAttention:
    """What the tiles of a stage attend to beside themselves, every choice made.

    Args:
        width_px: of the conductor, in pixels of its own; so is `height_px`.
        strength: what its keys count, all together, over a tile's own.
        share: of the steps, from the first on, in which they are attended to.
        styled: whether a style picture stands in the conductor's place.
    """

    width_px: int
    height_px: int
    strength: float
    neighbours: bool = False
    share: float = _SHARED_STEPS
    styled: bool = False

    def count_predictions(self, tiles: int, steps: int) -> int:
        """How many there are beside those of the tiles, of which all steps have so many."""
        shared = ceil(steps * self.share)
        return shared + (round(tiles * shared / steps) if self.neighbours else 0)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, every choice made.

    Args:
        skipped: steps of the whole schedule that are left out, from its beginning: it starts from a picture under noise.
        conditioned: whether its network sees a smaller picture instead.
        resampled: the step that is predicted twice where a part is inpainted, so that it fits the rest.
        guidance: part of the whole schedule that guidance is limited to.
        given: (width, height) at which it is given the request's source; None: it has what the stage before has made alone.
    """

    width_px: int
    height_px: int
    tiling: Tiling
    steps: int
    skipped: int = 0
    conditioned: bool = False
    given: tuple[int, int] | None = None
    attention: StageAttention | None = None
    resampled: int | None = None
    guidance: tuple[float, float] = ALWAYS_GUIDED

    @property
    def guided(self) -> range:
        """Those of its steps that guidance is limited to."""
        first, end = (max(int(share * self.schedule_steps) - self.skipped, 0) for share in self.guidance)
        return range(first, end)

    def count_rounds(self, index: int) -> int:
        """How often the tiles of step `index` are predicted."""
        return 2 if self.resampled == index else 1

    def count_predictions(self, tiles: int) -> int:
        """Over all steps, of which those of tiles are so many; the conductor is about as large as a tile."""
        return tiles + (self.attention.count_predictions(tiles, self.steps) if self.attention else 0)

    @property
    def schedule_steps(self) -> int:
        """Steps of the whole schedule; a stage runs the last `steps` of them."""
        return self.steps + self.skipped

    @property
    def strength(self) -> float:
        """Share of the schedule that is run."""
        return self.steps / self.schedule_steps


def split_steps(steps: int, strength: float) -> tuple[int, int]:
    """(run, skipped) of a whole schedule, as diffusers' img2img pipelines of Stable Diffusion round them."""
    run = min(int(steps * strength), steps)
    return run, steps - run


def choose_resampled(steps: int, skipped: int) -> int | None:
    """For a stage from pure noise; what begins with the source fits the rest."""
    return None if skipped or steps < 2 else ceil(steps * _RESAMPLED_AT)


def lay_sizes(
    width_px: int, height_px: int, native_px: float, unit_px: int, enlarges: int = 2
) -> list[tuple[int, int]]:
    """(width, height) of each stage: the short side `native_px`, then times `enlarges` until the picture's own is reached.

    Args:
        unit_px: sides are multiples of this.
    """
    sizes: list[tuple[int, int]] = []
    scale = native_px / min(width_px, height_px)
    while scale * _SLACK < 1:
        sizes.append((_align(width_px * scale, unit_px), _align(height_px * scale, unit_px)))
        scale *= enlarges
    return [*(size for size in sizes if size != (width_px, height_px)), (width_px, height_px)]


def widen_first(width_px: int, height_px: int, native_px: int, enlarges: int, most_px: int) -> float:
    """Short side of the first of several stages: a little more than `native_px` where that saves the last one, which would add
    little, and leaves the first one tile.

    Args:
        most_px: of a tile.
    """
    whole_px, longest_px = sorted((width_px, height_px))
    first_px = whole_px / enlarges
    while first_px > native_px * _WIDEST_FIRST:
        first_px /= enlarges
    size = ceil(longest_px * first_px / whole_px), ceil(first_px)
    worth_it = first_px > native_px * _SLACK and fit_one_tile(*size, native_px, most_px)
    return first_px if worth_it else native_px


def fit_one_tile(width_px: int, height_px: int, native_px: int, most_px: int) -> int | None:
    """Side of a tile that covers a stage of that size, if the model can be given it."""
    longest_px = max(width_px, height_px)
    return longest_px if longest_px <= min(_LONGEST_ONE_TILE * native_px, most_px) else None


def fit_conductor(width_px: int, height_px: int, tile_px: int, unit_px: int, most_px: int) -> tuple[int, int]:
    """(width, height) of the whole canvas reduced to the area of one tile, its longer side at most two tiles.

    Args:
        unit_px: sides are multiples of this, up to `most_px`.
    """
    longest_px = min(_LONGEST_ONE_TILE * tile_px, most_px)
    scale = min(tile_px / sqrt(width_px * height_px), longest_px / max(width_px, height_px))
    return _align(width_px * scale, unit_px), _align(height_px * scale, unit_px)


def choose_tiling(request: GenerationRequest, tile_size_px: int, *, anchored: bool) -> Tiling:
    """Where the request leaves it open, a moving grid overlaps in its outer steps alone.

    Args:
        anchored: whether it all begins with a picture: its tones are settled, the first steps are not outer.
    """
    moving, asked_px = request.advanced.tile_grid == "moving", request.advanced.overlap_px
    outer_px = tile_size_px // _SHARED if asked_px is None else asked_px
    shares = (0.0 if anchored else _OUTER_SHARE, _OUTER_SHARE)
    if request.active_style is not None:  # whose tones are not settled
        shares = (_OUTER_SHARE, _STYLED_OUTER_SHARE)
    return Tiling(
        tile_size_px=tile_size_px,
        overlap_px=0 if moving and asked_px is None else outer_px,
        outer_overlap_px=outer_px,
        outer_shares=shares,
        wrap=(request.seamless in ("y", "both"), request.seamless in ("x", "both")),
        moving=moving,
    )


def _align(side_px: float, unit_px: int) -> int:
    return max(round(side_px / unit_px), 1) * unit_px


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
