"""Which regions a request may have."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api_schemas.generation import GenerationRequest
from api_schemas.refused_values import list_refused
from api_schemas.regions import MAX_POINTS, Region, name_masks

RECTANGLE = {"rectangle": {"left_px": 0, "top_px": 8, "width_px": 16, "height_px": 4}}


def region(**changes: object) -> dict[str, object]:
    return {"prompt": "dunes", "shape": RECTANGLE} | changes


def refuse(*regions: dict[str, object]) -> tuple[str, str]:
    """(field, what is said of it)."""
    with pytest.raises(ValidationError) as refused:
        GenerationRequest.model_validate({"regions": list(regions)})
    (error,) = list_refused(refused.value, GenerationRequest)
    return error.field, error.allowed


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"shape": {}}, "shape", "exactly one of rectangle, polygon, mask; given: none"),
        ({"shape": RECTANGLE | {"mask": "region_mask_1"}}, "shape", "given: rectangle, mask"),
        ({"shape": {"mask": "region_mask_17"}}, "shape.mask", "region_mask_16"),
        ({"shape": {"polygon": [[0, 0], [9, 9]]}}, "shape.polygon", "3 to 100"),
        ({"shape": {"polygon": [[0, 0], [9], [9, 9]]}}, "shape.polygon.1", "two whole numbers of pixels"),
        ({"shape": {"polygon": [[0, 0]] * (MAX_POINTS + 1)}}, "shape.polygon", "3 to 100"),
        ({"shape": {"polygon": [[0, 0], [9, 0], [9, 0]]}}, "shape.polygon", "corner 2, 9,0, does not"),
        ({"shape": {"polygon": [[0, 0], [9, 0], [4, 0]]}}, "shape.polygon", "edge 1, 0,0 to 9,0, meets edge 2"),
        ({"shape": {"polygon": [[0, 0], [9, 9], [9, 0], [0, 9]]}}, "shape.polygon", "edge 1, 0,0 to 9,9, meets edge 3"),
        ({"shape": {"polygon": [[0, 0], [9, 0], [9, 9], [5, 0]]}}, "shape.polygon", "meets edge 3, 9,9 to 5,0"),
        ({"shape": {"polygon": [[0, 0], [9, 0], [-1, 9]]}}, "shape.polygon.2.0", "from 0 to"),
        ({"shape": {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 0, "height_px": 4}}}, "shape.rectangle.width_px", "from 1 to"),
        ({"weight": 0}, "weight", "above 0 and up to 10"),
        ({"weight": math.inf}, "weight", "above 0 and up to 10"),
        ({"weight": True}, "weight", "above 0 and up to 10"),
        ({"feather_px": 1025}, "feather_px", "from 0 to 1024"),
        ({"seed": -1}, "seed", "from 0 to 9223372036854775807"),
        ({"prompt": "a\0b"}, "prompt", "U+0000"),
        ({"shade": 1}, "shade", "no such field; known are prompt, "),
    ],
)  # fmt: skip
def test_what_is_no_region_is_named(changes: dict[str, object], field: str, says: str) -> None:
    place, message = refuse(region(), region(**changes))
    assert place == f"regions.1.{field}"
    assert says in message


def test_there_are_at_most_sixteen() -> None:
    assert len(GenerationRequest.model_validate({"regions": [region()] * 16}).regions) == 16
    place, message = refuse(*[region()] * 17)
    assert (place, "at most 16" in message) == ("regions", True)


def star(radii: list[int], turn: float) -> list[tuple[int, int]]:
    """Corners around a middle, in the order of their angles: simple, whatever the radii."""
    angles = [turn + 2 * math.pi * index / len(radii) for index in range(len(radii))]
    return [
        (500 + round(radius * math.cos(angle)), 500 + round(radius * math.sin(angle)))
        for radius, angle in zip(radii, angles, strict=True)
    ]


@given(st.lists(st.integers(100, 400), min_size=4, max_size=12), st.floats(0, 6), st.integers(0, 11))
def test_a_polygon_is_simple_or_refused(radii: list[int], turn: float, swapped: int) -> None:
    """A star is; with two neighbouring corners of a convex part exchanged, two edges cross."""
    corners = star(radii, turn)
    accepted = Region.model_validate(region(shape={"polygon": corners}))
    assert accepted.shape.polygon == corners
    convex, first = star([400] * len(radii), turn), swapped % len(radii)
    second = (first + 1) % len(radii)
    convex[first], convex[second] = convex[second], convex[first]
    with pytest.raises(ValidationError, match="do not cross or touch"):
        Region.model_validate(region(shape={"polygon": convex}))


def test_a_polygon_may_end_where_it_began() -> None:
    closed = Region.model_validate(region(shape={"polygon": [[0, 0], [9, 0], [9, 9], [0, 0]]}))
    assert closed.shape.polygon == [(0, 0), (9, 0), (9, 9)]


def test_masks_are_named_once_each() -> None:
    masks = [region(shape={"mask": name}) for name in ("region_mask_3", "region_mask_1", "region_mask_3")]
    request = GenerationRequest.model_validate({"regions": [*masks, region()]})
    assert name_masks(request.regions) == ["region_mask_3", "region_mask_1"]
