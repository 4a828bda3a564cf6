"""Regions of a request: areas of the picture with prompts of their own."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from api_schemas.fields import MAX_SEED, NoBool, Prompt, RequestPart, pair_of

MAX_REGIONS = 16
MAX_POINTS = 100
MAX_FEATHER_PX = 1024
_FAR_PX = (
    1 << 20
)  # no picture is so large; the service refuses what lies outside of the one that is asked for

Point = tuple[int, int]
"""(x, y): pixels to the right of the picture's left edge, and below its top edge."""
# Names of multipart parts.
RegionMask = Literal[
    "region_mask_1", "region_mask_2", "region_mask_3", "region_mask_4",
    "region_mask_5", "region_mask_6", "region_mask_7", "region_mask_8",
    "region_mask_9", "region_mask_10", "region_mask_11", "region_mask_12",
    "region_mask_13", "region_mask_14", "region_mask_15", "region_mask_16",
]  # fmt: skip


MaskPart = Literal[RegionMask, "mask_image"]


class RectangleShape(RequestPart):
    """A rectangle within the picture."""

    left_px: int = Field(ge=0, le=_FAR_PX)
    top_px: int = Field(ge=0, le=_FAR_PX)
    width_px: int = Field(ge=1, le=_FAR_PX)
    height_px: int = Field(ge=1, le=_FAR_PX)

    def list_corners(self) -> list[Point]:
        """In order, from the top left one on."""
        right, bottom = self.left_px + self.width_px, self.top_px + self.height_px
        return [(self.left_px, self.top_px), (right, self.top_px), (right, bottom), (self.left_px, bottom)]


def _check_polygon(points: list[Point]) -> list[Point]:
    """Its corners, the first not repeated at the end."""
    points = points[:-1] if len(points) > 3 and points[0] == points[-1] else points
    edges = list(zip(points, [*points[1:], *points[:1]], strict=True))
    for number, (start, end) in enumerate(edges, start=1):
        if start == end:
            raise ValueError(f"corners that differ from the next; corner {number}, {_name(start)}, does not")
    for (first, one), (second, other) in combinations(enumerate(edges, start=1), 2):
        if _touch_wrongly(one, other, neighbours=second - first == 1 or second - first == len(edges) - 1):
            raise ValueError(
                f"edges that do not cross or touch each other; edge {first}, {_name(*one)}, meets edge {second}, "
                f"{_name(*other)}"
            )
    return points


def _touch_wrongly(one: tuple[Point, Point], other: tuple[Point, Point], *, neighbours: bool) -> bool:
    """Neighbours share a corner, and nothing else: one may not go back along the other."""
    if not neighbours:
        return _meet(one, other)
    (shared,) = set(one) & set(other) if len(set(one) & set(other)) == 1 else (None,)
    if shared is None:
        return True
    tips = [point for edge in (one, other) for point in edge if point != shared]
    arms = [(tip[0] - shared[0], tip[1] - shared[1]) for tip in tips]
    (ax, ay), (bx, by) = arms
    return ax * by == ay * bx and ax * bx + ay * by > 0


def _meet(one: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    """Whether two edges have a point in common; in whole numbers, so exactly."""
    turns = [_turn(*one, point) for point in other] + [_turn(*other, point) for point in one]
    if turns[0] * turns[1] < 0 and turns[2] * turns[3] < 0:
        return True
    ends = [*((one, point) for point in other), *((other, point) for point in one)]
    return any(not turn and _spans(*edge, point) for turn, (edge, point) in zip(turns, ends, strict=True))


def _turn(start: Point, end: Point, point: Point) -> int:
    """Above zero on one side of an edge, below on the other, zero on its line."""
    turn = (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])
    return (turn > 0) - (turn < 0)


def _spans(start: Point, end: Point, point: Point) -> bool:
    """Whether a point on an edge's line lies between its ends."""
    return all(min(a, b) <= at <= max(a, b) for a, b, at in zip(start, end, point, strict=True))


def _name(*points: Point) -> str:
    return " to ".join(f"{x},{y}" for x, y in points)


Coordinate = Annotated[int, Field(ge=0, le=_FAR_PX), NoBool]
Corner = Annotated[
    tuple[Coordinate, Coordinate], pair_of("[x, y], two whole numbers of pixels, as in [64, 96]")
]
Polygon = Annotated[
    list[Corner],
    Field(min_length=3, max_length=MAX_POINTS),
    AfterValidator(_check_polygon),
]


class RegionShape(RequestPart):
    """Where a region lies: exactly one of the fields."""

    rectangle: RectangleShape | None = None
    polygon: Polygon | None = Field(
        default=None,
        description="Corners [x, y] in pixels from the picture's top left corner; edges may not cross.",
    )
    mask: RegionMask | None = Field(
        default=None,
        description="Name of the part of a multipart request with a picture: white where the region is, black where it"
        " is not. A picture of another size is scaled, and the job warns of it.",
    )

    @model_validator(mode="after")
    def _require_one(self) -> "RegionShape":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            fields = ", ".join(type(self).model_fields)
            raise ValueError(f"exactly one of {fields}; given: {', '.join(given) or 'none'}")
        return self

    def list_corners(self) -> list[Point]:
        """Of the rectangle or the polygon, in order; a mask has none."""
        return (self.polygon or []) if self.rectangle is None else self.rectangle.list_corners()


class Region(RequestPart):
    """An area of the picture with a prompt of its own."""

    prompt: Prompt
    negative_prompt: Prompt | None = Field(
        default=None, description="If left out, the request's own negative prompt."
    )
    weight: float = Field(
        default=1.0,
        gt=0.0,
        le=10.0,
        allow_inf_nan=False,
        description="How much the region counts: where regions overlap, relative to the others; below 1, the request's"
        " own prompt counts for the rest. Above 1, more of the feathered border is the region's, too.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Seed of the region's own initial noise; if left out, it has the picture's.",
    )
    shape: RegionShape
    feather_px: int = Field(
        default=32,
        ge=0,
        le=MAX_FEATHER_PX,
        description="Half width of the soft border: the region fades from so far inside its edge to so far outside."
        " A region that is narrower than the whole border is weaker in its middle, too.",
    )


def name_masks(regions: Sequence[Region]) -> list[RegionMask]:
    """The parts that masks come in, each once."""
    return list(dict.fromkeys(_find_masks(regions)))


def _find_masks(regions: Sequence[Region]) -> Iterator[RegionMask]:
    for region in regions:
        if region.shape.mask is not None:
            yield region.shape.mask
