"""Which styles a request may ask for, and what the jobs that are derived from one keep of it."""

import pytest
from pydantic import ValidationError

from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.generation import GenerationRequest, ResolvedRequest

REGION = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 64, "height_px": 64}}
RESOLVED = {"model": "m", "steps": 4, "guidance_scale": 1.0, "seed": 3, "prompt": "hills", "source": {}}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"style": {}}, "style needs `source`"),
        ({"style": {}, "source": {}, "upscale": 2}, "style does not go with upscale"),
        ({"style": {}, "source": {}, "mask": REGION}, "style does not go with mask"),
        ({"style": {"prompt": "x" * 2000}, "source": {}, "prompt": "y"}, "2003 characters together"),
        ({"style": {"strength": 1.1}, "source": {}}, "less than or equal to 1"),
        ({"style": {"style": "ink"}, "source": {}}, "Extra inputs"),
    ],
)
def test_what_cannot_be_restyled_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GenerationRequest.model_validate(asked)


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
