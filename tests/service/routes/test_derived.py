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


REFUSED: list[tuple[str, dict[str, Any], dict[str, tuple[str, str]]]] = [
    ("extend", {}, {"left_px": ("0", "above 0, here or in `right_px`")}),
    ("extend", {"left_px": 16_384}, {"left_px": ("16384", "at most 15360: ")}),
    ("extend", {"right_px": 15_000, "left_px": 1000}, {"left_px": ("1000", "at most 360: "), "right_px": ("15000", "at most 14360: ")}),
    ("extend", {"right_px": 1}, {"right_px": ("1", "what makes the picture's width, 1025 px with this, multiples of 64 from 64 to 16384")}),
    ("reroll", {}, {"region": ("null", "required, an object with the fields rectangle, polygon")}),
    ("reroll", {"region": {"rectangle": {**REGION["rectangle"], "left_px": 1000}}}, {"region.rectangle": ('{"left_px":1000', "within the picture: x from 0 to 1024 px")}),
    ("variations", {"count": "many"}, {"count": ('"many"', "a whole number from 1 to 16")}),
    ("variations", {"count": 1, "finish_within_s": 1, "start_within_s": 2}, {"finish_within_s": ("1", "at least `start_within_s`, which is 2")}),
]  # fmt: skip


def test_what_cannot_be_derived_is_told_by_the_fields_that_were_sent(api: httpx.Client, story: Story) -> None:
    parent = api.post("/v1/jobs", json={"prompt": "lava", "seamless": "x"}).json()["id"]
    story.start(parent)
    story.succeed(parent, RESULT)
    for what, asked, expected in REFUSED:
        answer = api.post(f"/v1/jobs/{parent}/{what}", json=asked)
        assert answer.status_code == 422, answer.text
        errors = {each["field"]: each for each in answer.json()["errors"]}
        assert errors.keys() == expected.keys(), (what, asked)
        for field, (value, allowed) in expected.items():
            assert errors[field]["value"].startswith(value)
            assert errors[field]["allowed"].startswith(allowed)


def test_a_body_of_another_type_is_told_by_its_header(api: httpx.Client, story: Story) -> None:
    parent = api.post("/v1/jobs", json={"prompt": "lava"}).json()["id"]
    story.start(parent)
    story.succeed(parent, RESULT)
    for what in ASKED:
        answer = api.post(f"/v1/jobs/{parent}/{what}", content=b"{}", headers={"Content-Type": "text/plain"})
        (error,) = answer.json()["errors"]
        assert (error["field"], error["value"]) == ("Content-Type", "text/plain")
