"""Pictures that come with a job and are refused."""

import json
from pathlib import Path

import httpx
import pytest

from service.images.formats import name_formats
from tests.service.images.test_uploads import CONTROL, announce_controls, encode, errors, post
from tests.service.tenants import RESULT
from tests.story import Story

__all__ = ["announce_controls"]  # as a fixture here, too


@pytest.mark.parametrize(
    ("request_", "pictures", "field", "words"),
    [
        (CONTROL, {}, "control_image", "as the part control_image"),
        (CONTROL | {"source": {"fit": "fit"}}, {"source_image": encode()}, "control_image", "as the part control_image"),
        ({"prompt": "x"}, {"control_image": encode()}, "control_image", "without the field control"),
        (CONTROL, {"control_image": encode(), "mask": encode()}, "mask", "known are request, control_image"),
        (CONTROL, {"control_image": b"GIF89a" + encode()}, "control_image", name_formats()),
        (CONTROL, {"control_image": encode("GIF")}, "control_image", name_formats()),
        (CONTROL, {"control_image": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "control_image", "PNG"),
        (CONTROL, {"control_image": b""}, "control_image", name_formats()),
        (CONTROL, {"control_image": encode()[:-60]}, "control_image", "this one is broken"),
        ({"control": {"name": "none"}}, {"control_image": encode()}, "control.name", "edges"),
        ({"control": {"nam": "edges"}}, {"control_image": encode()}, "control.nam", "name, scale, start, end"),
        ({"control": {"name": "edges", "start": 0.5, "end": 0.5}}, {"control_image": encode()}, "control.start", "less than `end`"),
        ({"source": {}}, {"source_image": encode(), "style_image": encode()}, "style_image", "without the field style"),
        ({"source": {}, "style": {}}, {"source_image": encode()}, "style_image", "as the part style_image"),
        ({"source": {}, "style": {"prompt": "ink", "style_image": True}}, {"source_image": encode()}, "style_image", "part"),
        ({"source": {}, "style": {}}, {"source_image": encode(size=(64, 64)), "style_image": b"x"}, "style_image", "PNG"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_part(
    api: httpx.Client, store_dir: Path, request_: dict[str, object], pictures: dict[str, bytes], field: str, words: str
) -> None:  # fmt: skip
    assert words in errors(post(api, request_, **pictures))[field]
    assert api.get("/v1/jobs").json()["data"] == []
    assert not [path for path in store_dir.rglob("*") if path.is_file()]


def test_json_alone_cannot_bring_a_picture(api: httpx.Client) -> None:
    assert "multipart/form-data" in errors(api.post("/v1/jobs", json=CONTROL))["control_image"]


def test_a_form_without_a_request_or_with_two_is_refused(api: httpx.Client) -> None:
    picture = ("a.png", encode(), "image/png")
    assert "JSON" in errors(api.post("/v1/jobs", files={"control_image": picture}))["request"]
    text = (None, json.dumps(CONTROL), "application/json")
    twice = [("request", text), ("request", text), ("control_image", picture)]
    assert "one part" in errors(api.post("/v1/jobs", files=twice))["request"]
    broken = api.post("/v1/jobs", files={"request": (None, "{", "application/json")})
    assert broken.status_code == 400
    cut = api.post(
        "/v1/jobs", content=b"--x\r\n", headers={"Content-Type": "multipart/form-data; boundary=y"}
    )
    assert cut.status_code in (400, 422)


def test_another_media_type_is_refused(api: httpx.Client) -> None:
    answer = api.post("/v1/jobs", content=b"prompt: lava", headers={"Content-Type": "text/yaml"})
    assert "multipart/form-data" in errors(answer)["Content-Type"]


def test_a_picture_beside_another_way_to_say_it_is_refused(api: httpx.Client, story: Story) -> None:
    picture, small = encode(size=(64, 64)), {"width_px": 64, "height_px": 64, "prompt": "lava"}
    parent = api.post("/v1/jobs", json=small).json()["id"]
    story.start(parent)
    story.succeed(parent, RESULT)
    both = post(api, small | {"source": {"job": parent}}, source_image=picture)
    assert errors(both) == {"source_image": "no picture beside what source says: one of the two"}
    mask = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 8, "height_px": 8}}
    both = post(api, small | {"source": {}, "mask": mask}, source_image=picture, mask_image=picture)
    assert errors(both) == {"mask_image": "no picture beside what mask says: one of the two"}
