"""What is asked of a finished job, over HTTP."""

from typing import Any

import httpx
import pytest

from tests.service.tenants import RESULT
from tests.story import Story

REGION = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 64, "height_px": 64}}
ASKED: dict[str, dict[str, Any]] = {
    "reroll": {"region": REGION},
    "extend": {"left_px": 64},
    "variations": {"count": 1},
}


@pytest.mark.parametrize("told", [True, False])
def test_a_child_has_metadata_as_it_is_asked_for_or_as_its_parent(
    api: httpx.Client, story: Story, told: bool
) -> None:
    parent = api.post("/v1/jobs", json={"prompt": "lava", "embed_metadata": told}).json()["id"]
    story.start(parent)
    story.succeed(parent, RESULT)
    for what, asked in ASKED.items():
        for wish, expected in (({}, told), ({"embed_metadata": None}, told)):
            assert embeds(api, parent, what, asked | wish) == expected
        for wish in (True, False):
            assert embeds(api, parent, what, asked | {"embed_metadata": wish}) == wish


def embeds(api: httpx.Client, parent: str, what: str, asked: dict[str, Any]) -> bool:
    answer = api.post(f"/v1/jobs/{parent}/{what}", json=asked)
    assert answer.status_code == 202, answer.text
    (job,) = answer.json().get("data", [answer.json()])
    return job["request"]["embed_metadata"]
