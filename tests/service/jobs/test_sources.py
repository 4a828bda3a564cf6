"""What a source decides of a request, and which requests it refuses."""

from typing import Any

import pytest

from api_schemas.generation import GenerationRequest
from service.errors import InvalidRequestError
from service.jobs.sources import settle_source

OFFSET = {"left_px": 60, "top_px": 0}


@pytest.mark.parametrize(
    ("asked", "size", "picture", "strength"),
    [
        ({}, (300, 200), (300, 200), 0.6),
        ({"width_px": 600}, (300, 200), (600, 400), 0.6),
        ({"height_px": 100}, (300, 200), (150, 100), 0.6),
        ({"width_px": 128, "height_px": 128}, (300, 200), (128, 128), 0.6),
        ({"strength": 0.2}, (300, 200), (300, 200), 0.2),
        ({"upscale": 3}, (300, 200), (900, 600), None),
        ({"mask": {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 9, "height_px": 9}}}, (99, 99), (99, 99), 1.0),
        ({"source": {"fit": "fit"}, "width_px": 300, "height_px": 300}, (300, 200), (300, 300), 1.0),
        ({"style": {"prompt": "lava", "strength": 0.4}}, (300, 200), (300, 200), 0.4),
        ({"style": {"strength": 0.5}}, (300, 200), (300, 200), 0.4),
        ({"style": {"prompt": "lava"}, "strength": 0.3}, (300, 200), (300, 200), 0.3),
        ({"style": {"prompt": "lava", "strength": 0}}, (300, 200), (300, 200), 0.0),
    ],
)  # fmt: skip
def test_what_is_left_out_follows_from_the_source(
    asked: dict[str, Any], size: tuple[int, int], picture: tuple[int, int], strength: float | None
) -> None:
    settled = settle_source(GenerationRequest.model_validate({"source": {}} | asked), size)
    assert (settled.width_px, settled.height_px, settled.strength) == (*picture, strength)


@pytest.mark.parametrize(
    ("asked", "size", "field"),
    [
        ({"upscale": 2, "width_px": 64}, (300, 200), "width_px"),
        ({"upscale": 8}, (3000, 200), "upscale"),
        ({"upscale": 8}, (7, 7), "upscale"),
        ({"upscale": 2, "source": {"fit": "exact"}}, (300, 200), "source.fit"),
        ({"upscale": 2, "source": {"offset": OFFSET}}, (300, 200), "source.offset"),
        ({"upscale": 8, "output_format": "webp"}, (2048, 64), "output_format"),
        ({"output_format": "webp"}, (16_384, 64), "output_format"),
        ({"width_px": 16_000}, (64, 128), "width_px and height_px"),
        ({}, (300, 20), "width_px and height_px"),
        ({"source": {"fit": "exact"}, "width_px": 64, "height_px": 64}, (300, 200), "source.fit"),
        ({"source": {"offset": OFFSET}, "width_px": 300, "height_px": 200}, (300, 200), "source.offset"),
        (
            {"source": {"fit": "fit"}, "width_px": 300, "height_px": 300, "strength": 0.5},
            (300, 200),
            "strength",
        ),
        (
            {"source": {"fit": "fit"}, "width_px": 300, "height_px": 300, "style": {"prompt": "ink"}},
            (300, 200),
            "style",
        ),
    ],
)
def test_what_does_not_fit_the_source_is_refused_by_name(
    asked: dict[str, Any], size: tuple[int, int], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        settle_source(GenerationRequest.model_validate({"source": {}} | asked), size)
    assert [error.field for error in refused.value.errors] == [field]
