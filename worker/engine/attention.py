"""What a tile attends to beside itself: the conductor, and on request its neighbourhood. Sizes are latent pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from statistics import fmean

import torch.nn.functional as F
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle

_REACH = 2  # a neighbourhood's side over its tile's, and how many of its pixels a side become one


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How the tiles of a stage attend to the rest of the canvas.

    Args:
        conductor: (height, width) of the whole canvas reduced.
        strength: what the keys of a view count, all together, over a tile's own; in (0, 1].
        share: of the steps, from the first on, in which they are attended to.
        neighbours: whether a tile also attends to the area around it at half size.
        unit: sides of a view are multiples of this.
        styled: whether a style picture of the conductor's size stands in its place.
    """

    conductor: tuple[int, int]
    strength: float
    share: float = 1.0
    neighbours: bool = False
    unit: int = 1
    styled: bool = False

    def applies_at(self, index: int, steps: int) -> bool:
        return index < ceil(steps * self.share)

    def find_neighbourhood(self, canvas: Plane, tile: Rectangle) -> "Neighbourhood":
        """Twice the tile's side where the canvas is as large; it ends at borders, and goes round where it wraps."""
        (top, height), (left, width) = (
            _surround(start, extent, side, wraps)
            for start, extent, side, wraps in zip(
                (tile.top, tile.left), (tile.height, tile.width), canvas.size, canvas.wrap, strict=True
            )
        )
        return Neighbourhood(Rectangle(top, left, height, width), self._halve(height, width))

    def _halve(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (max(side // _REACH // self.unit, 1) * self.unit for side in (height, width))
        return rows, columns


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """An area of the canvas, and the (height, width) that it is reduced to."""

    area: Rectangle
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Clock:
    """What a model must be told of a latent that holds less noise than the step's.

    Args:
        gain: by which the latent is multiplied, so that its variance is what the model expects.
        timestep: of the same signal-to-noise ratio, ().
    """

    gain: float
    timestep: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A part of the canvas reduced to what the model may see.

    Args:
        crop: (C, h, w), float32.
        timestep: the model's clock for it, ().
        area: of the canvas that it shows.
        masked: the same part of what is made and what stays, (1 + C, h, w), where the model is to see it.
    """

    crop: Tensor
    timestep: Tensor
    area: Rectangle
    masked: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.crop.shape[-2], self.crop.shape[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What the queries of one batch may attend to: a function of canvas, tile and step alone.

    A replica computes the conductor's keys once a step. It knows the conductor by identity: in between it may have
    predicted for another picture.

    Args:
        canvas: that the tiles lie on.
        strength: as in `AttentionPlan`.
        neighbourhoods: each query's own, all of one size; or none.
        styled: whether the conductor is a style picture.
    """

    canvas: Plane
    conductor: View
    strength: float
    neighbourhoods: tuple[View, ...] = ()
    styled: bool = False

    def only(self, place: int) -> "Context":
        """Of one query of the batch."""
        return replace(self, neighbourhoods=self.neighbourhoods[place : place + 1])


class Views:
    """What can be seen of the canvas in one step.

    Args:
        latent: the canvas as the model sees it, (C, H, W).
        match: the clock of a latent of which averaging has left this share of the noise's deviation.
        masked: what is made and what stays, (1 + C, H, W), where the model is to see it.
        style: a picture in the conductor's place, where the plan says so.
    """

    def __init__(
        self,
        latent: Tensor,
        canvas: Plane,
        plan: AttentionPlan,
        match: Callable[[float], Clock],
        masked: Tensor | None = None,
        style: View | None = None,
    ) -> None:
        self._latent, self._canvas, self._plan, self._match = latent, canvas, plan, match
        self._masked = masked
        whole = Neighbourhood(canvas.whole, plan.conductor)
        self._conductor = self._look_at(whole) if style is None else self._complete(style, whole)

    def of(self, tiles: Sequence[Rectangle]) -> Context:
        """The context of a batch of these tiles."""
        plan, canvas = self._plan, self._canvas
        around = [plan.find_neighbourhood(canvas, tile) for tile in tiles] if plan.neighbours else []
        views = tuple(self._look_at(each) for each in around)
        return Context(canvas, self._conductor, plan.strength, views, plan.styled)

    def _complete(self, style: View, whole: Neighbourhood) -> View:
        """All of a style picture is made, as all of the canvas that it is for."""
        return style if self._masked is None else replace(style, masked=self._average(self._masked, whole))

    def _look_at(self, part: Neighbourhood) -> View:
        whole = (part.area.height, part.area.width)
        clock = self._match(measure_left_noise(whole, part.size))
        crop = self._average(self._latent, part) * clock.gain
        masked = None if self._masked is None else self._average(self._masked, part)
        return View(crop, clock.timestep, part.area, masked)

    def _average(self, state: Tensor, part: Neighbourhood) -> Tensor:
        return average(self._canvas.gather(state, part.area), part.size)


def average(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) reduced to (C, h, w): each pixel is the mean of those that it lies over."""
    return F.adaptive_avg_pool2d(latent, size)


def measure_left_noise(whole: tuple[int, int], size: tuple[int, int]) -> float:
    """What `average` leaves of the deviation of white noise: 1/s where it averages s x s pixels, the root mean square
    where their number differs."""
    (height, width), (rows, columns) = whole, size
    return sqrt(_mean_inverse(height, rows) * _mean_inverse(width, columns))


def _mean_inverse(length: int, cells: int) -> float:
    return fmean(1 / (ceil((cell + 1) * length / cells) - cell * length // cells) for cell in range(cells))


def _surround(start: int, extent: int, side: int, wraps: bool) -> tuple[int, int]:
    """(start, extent) on one axis."""
    wider = min(_REACH * extent, side)
    first = start - (wider - extent) // 2
    return (first % side if wraps else min(max(first, 0), side - wider)), wider
