"""Which styles a request may ask for, and what the jobs that are derived from one keep of it."""

import pytest
from pydantic import ValidationError

from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.generation import GenerationRequest, ResolvedRequest
from api_schemas.refused_values import list_refused

REGION = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 64, "height_px": 64}}
RESOLVED = {"model": "m", "steps": 4, "guidance_scale": 1.0, "seed": 3, "prompt": "hills", "source": {}}


@pytest.mark.parametrize(
    ("asked", "field", "allowed"),
    [
        ({"style": {}}, "style", "nothing without `source`"),
        ({"style": {}, "source": {}, "upscale": 2}, "style", "nothing beside `upscale`"),
        ({"style": {}, "source": {}, "mask": REGION}, "style", "nothing beside `mask`"),
        (
            {"style": {"prompt": "x" * 2000}, "source": {}, "prompt": "y"},
            "style.prompt",
            "at most 2000 characters together with the prompt before it; they have 2003",
        ),
        ({"style": {"strength": 1.1}, "source": {}}, "style.strength", "a number from 0 to 1"),
        ({"style": {"style": "ink"}, "source": {}}, "style.style", "no such field"),
    ],
)
def test_what_cannot_be_restyled_is_refused(asked: dict[str, object], field: str, allowed: str) -> None:
    with pytest.raises(ValidationError) as refused:
        GenerationRequest.model_validate(asked)
    (error,) = list_refused(refused.value, GenerationRequest)
    assert error.field == field
    assert error.allowed.startswith(allowed)


def test_its_words_stand_behind_the_prompts_unless_it_counts_for_nothing() -> None:
    request = {"prompt": "hills", "source": {}, "regions": [{"prompt": "a lake", "shape": REGION}]}
    for strength, prompts in ((0.5, ["hills, ink", "a lake, ink"]), (0, ["hills", "a lake"])):
        styled = GenerationRequest.model_validate(
            request | {"style": {"prompt": "ink", "strength": strength}}
        )
        assert [styled.styled_prompt, styled.describe_region(styled.regions[0])] == prompts


def test_what_is_made_again_of_a_restyled_picture_keeps_the_words_of_its_style() -> None:
    parent = ResolvedRequest.model_validate(RESOLVED | {"style": {"prompt": "ink"}})
    reroll = RerollRequest.model_validate({"region": REGION, "seed": 3}).derive("0" * 28, parent)
    extended = ExtendRequest(left_px=64).derive("0" * 28, parent)
    for child in (reroll, extended):
        assert (child.prompt, child.style) == ("hills, ink", None)
    assert reroll.strength == 0  # the parent's own seed and prompt
    varied = next(VariationsRequest().derive(parent, "t"))
    assert (varied.prompt, varied.style) == ("hills", parent.style)
