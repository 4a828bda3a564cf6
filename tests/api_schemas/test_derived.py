"""What the jobs that are derived from one keep of its settings."""

import pytest

from api_schemas.derived import ExtendRequest, RerollRequest
from api_schemas.generation import ResolvedRequest

REGION = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 64, "height_px": 64}}
PARENT = ResolvedRequest.model_validate(
    {
        "model": "m", "steps": 4, "guidance_scale": 1.0, "seed": 3, "prompt": "grey cobblestones",
        "advanced": {"sync_strength": 0.8},
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "strength"), [(None, 0.8), ("grey cobblestones", 0.8), ("moss", 0.0), ("", 0.0)]
)
def test_a_part_is_synced_with_what_stays_unless_it_is_another_thing(
    prompt: str | None, strength: float
) -> None:
    reroll = RerollRequest.model_validate({"region": REGION, "prompt": prompt}).derive("0" * 28, PARENT)
    extended = ExtendRequest(left_px=64, prompt=prompt).derive("0" * 28, PARENT)
    for child in (reroll, extended):
        assert child.advanced.sync_strength == strength
