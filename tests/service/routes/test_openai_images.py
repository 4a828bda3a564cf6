"""OpenAI's Images API with its own client: what is refused, and what it answers."""

import base64
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

from api_schemas.wire import JOBS_KEY
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.routes.openai_client import SOURCE, connect, draw, end_in_failure, find_jobs, finish
from tests.story import CARD, Story

REFUSED: list[tuple[str, dict[str, object], str, str]] = [
    ("generate", {"output_format": "gif"}, "output_format", "invalid_value"),
    ("generate", {"output_format": "svg"}, "output_format", "invalid_value"),
    ("generate", {"frame_count": 3}, "frame_count", "invalid_value"),
    ("generate", {"svg": {"model": "x"}}, "svg", "invalid_value"),
    ("generate", {"complexity": "high"}, "complexity", "invalid_value"),
    ("generate", {"background": "transparent"}, "background", "invalid_value"),
    ("generate", {"size": "4096x4096"}, "response_format", "invalid_value"),
    (
        "generate",
        {"size": "4096x4096", "response_format": "url", "output_format": "tiff"},
        "output_format",
        "invalid_value",
    ),
    ("generate", {"size": "63x64"}, "size", "invalid_value"),
    ("generate", {"size": "large"}, "size", "invalid_value"),
    (
        "generate",
        {"size": "16384x64", "response_format": "url", "output_format": "webp"},
        "output_format",
        "invalid_value",
    ),
    ("generate", {"n": 11}, "n", "invalid_value"),
    ("generate", {"partial_images": 4, "stream": True}, "partial_images", "invalid_value"),
    ("generate", {"prompt": "x" * 32_001}, "prompt", "invalid_value"),
    ("generate", {"prompt": "\0"}, "prompt", "invalid_value"),
    ("generate", {"prompt": None}, "prompt", "missing_required_parameter"),
    ("generate", {"extra_body": {"cfg": 1}}, "cfg", "unknown_parameter"),
    ("generate", {"extra_body": {"chorale": {"cfg": 1}}}, "chorale.cfg", "unknown_parameter"),
    ("generate", {"extra_body": {"chorale": {"seed": -1}}}, "chorale.seed", "invalid_value"),
    ("generate", {"extra_headers": {"Idempotency-Key": "x" * 300}}, "Idempotency-Key", "invalid_value"),
    ("edit", {"image": [SOURCE] * 3}, "image", "invalid_value"),
    ("edit", {"image": [SOURCE] * 2}, "image", "invalid_value"),  # this model takes no style from a picture
    ("edit", {"image": ("a.png", draw(size=(2100, 2100)))}, "response_format", "invalid_value"),
    ("edit", {"mask": SOURCE, "image": [SOURCE] * 2}, "mask", "invalid_value"),
    ("edit", {"mask": ("m.png", draw("RGBA", (160, 128)))}, "mask", "invalid_value"),
    ("edit", {"mask": SOURCE}, "mask", "invalid_value"),  # it is opaque
    ("edit", {"markup": SOURCE}, "markup", "invalid_value"),
    ("edit", {"n": "many"}, "n", "invalid_value"),
    ("edit", {"input_fidelity": "medium"}, "input_fidelity", "invalid_value"),
    ("edit", {"extra_body": {"image": "text"}, "image": SOURCE}, "image", "invalid_value"),
]


def test_what_cannot_be_done_is_refused_by_its_parameter(api: httpx.Client, url: str, story: Story) -> None:
    client = connect(url)
    for name, choices, param, code in REFUSED:
        usual = {"prompt": "x"} | ({"image": SOURCE} if name == "edit" else {})
        with pytest.raises(openai.BadRequestError) as refusal:
            getattr(client.images, name)(**(usual | choices))
        said = refusal.value
        assert (said.param, said.code, said.type) == (param, code, "invalid_request_error"), choices
        assert said.body["message"].startswith(f"{param}: ")
    assert api.get("/v1/jobs").json()["data"] == []


def test_who_names_an_unknown_field_of_a_form_is_told_which_there_are(url: str, story: Story) -> None:
    schema = httpx.get(f"{url}/openapi.json").json()["paths"]["/v1/images/edits"]["post"]["requestBody"]
    described = schema["content"]["multipart/form-data"]["schema"]["properties"]
    for extra in ({"cfg": 1}, {"chorale": {"cfg": 1}}):
        with pytest.raises(openai.BadRequestError) as refusal:
            connect(url).images.edit(image=SOURCE, prompt="x", extra_body=extra)
        known = set(refusal.value.body["message"].partition("known are ")[2].split(", "))
        assert {"image", "mask", "prompt", "input_fidelity", "chorale[seed]"} <= known <= set(described)


BROKEN_FORMS = {
    "": b"--x--\r\n",
    "; boundary=x": b"no form",
    "; boundary=y": b"--y\r\nContent-Disposition: form-data\r\n\r\na\r\n--y--\r\n",
    "; boundary=cut": b'--cut\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na lake',
    "; boundary=z": b"--z\r\nA\x00: b\r\n\r\na\r\n--z--\r\n",
}


def test_a_broken_form_is_called_one(api: httpx.Client) -> None:
    for path in ("/v1/images/edits", "/v1/jobs"):
        for boundary, body in BROKEN_FORMS.items():
            headers = {"Content-Type": f"multipart/form-data{boundary}"}
            answer = api.post(path, content=body, headers=headers)
            told = answer.json()
            assert (answer.status_code, told.get("error", told)["code"]) == (400, "invalid_form")


def test_middleware_and_router_refuse_in_the_same_form(
    settings: ServiceSettings, serve_with: Serve, story: Story
) -> None:
    url = serve_with(settings.model_copy(update={"max_body_bytes": 50_000, "max_queued": 1}))
    story.redis.rpush("rq:queue:x", "1")
    raw = {"content": b"{", "headers": {"Content-Type": "application/json"}}
    answers = {
        400: httpx.post(f"{url}/v1/images/generations", **raw),
        403: httpx.post(f"{url}/v1/images/generations", json={}, headers={"Host": "evil.example"}),
        404: httpx.post(f"{url}/v1/images/variations"),
        405: httpx.get(f"{url}/v1/images/generations"),
        413: httpx.post(f"{url}/v1/images/generations", json={"prompt": "x" * 60_000}),
        503: httpx.post(f"{url}/v1/images/generations", json={"prompt": "x", "n": 2}),
    }
    for status, answer in answers.items():
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answers[503].json()["error"]["code"] == "queue_full"
    assert answers[503].headers["Retry-After"]
    with pytest.raises(openai.NotFoundError) as missing:
        connect(url).models.retrieve("a/b")
    assert missing.value.code == "model_not_found"
    assert "code" in httpx.get(f"{url}/v1/jobs/1").json()  # our own routes keep theirs
    assert story.redis.zcard(JOBS_KEY) == 0


def test_events_are_partial_pictures_of_the_canvas_then_the_picture(
    brisk: str, story: Story, store_dir: Path
) -> None:
    stream = connect(brisk).images.generate(
        prompt="x", size="2048x1024", stream=True, partial_images=2, output_format="png", quality="high"
    )
    (job_id,) = find_jobs(story)
    assert story.job(job_id).request.steps == 18
    story.start(job_id)
    for step in (1, 4, 5):  # of 12: the first is due at the fourth
        story.step(job_id, step)
    time.sleep(0.2)  # comments keep the connection open
    for left_px in range(0, 2048, 512):
        for top_px in (0, 512):
            story.preview(job_id, left_px, top_px, level=left_px // 8)
    story.step(job_id, 6)
    first = next(stream)
    assert (first.type, first.partial_image_index, first.size) == (
        "image_generation.partial_image",
        0,
        "2048x1024",
    )
    with Image.open(BytesIO(base64.b64decode(first.b64_json))) as partial:
        assert (partial.format, partial.size) == ("PNG", (1024, 512))
        levels = [partial.getpixel((x, 500))[0] for x in (128, 384, 640, 896)]
        assert levels == pytest.approx([0, 64, 128, 192], abs=3)
    for step in range(7, 13):
        story.step(job_id, step)
    assert next(stream).partial_image_index == 1
    finish(story, store_dir, job_id, b"picture" * 100_000)
    (last,) = stream
    assert (last.type, last.quality, last.output_format) == ("image_generation.completed", "high", "png")
    assert base64.b64decode(last.b64_json) == b"picture" * 100_000
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens > 1000


def test_a_failure_amid_events_is_raised(brisk: str, story: Story) -> None:
    stream = connect(brisk).images.generate(prompt="x", stream=True)
    (job_id,) = find_jobs(story)
    end_in_failure(story, job_id)
    with pytest.raises(openai.APIError, match=f"{job_id} has failed: no luck") as failure:
        list(stream)
    assert (failure.value.code, failure.value.type) == ("engine_failed", "server_error")


def test_the_second_picture_gives_the_style(
    url: str, story: Story, store_dir: Path, pool: ThreadPoolExecutor
) -> None:
    story.publish(CARD.model_copy(update={"style_image": True}))
    asked: Future[object] = pool.submit(
        connect(url).images.edit,
        image=[SOURCE, ("b.webp", draw(size=(640, 64), kind="WEBP"))],
        prompt="x",
        n=2,
        extra_body={"chorale": {"seed": 5, "negative_prompt": "fog"}},
    )
    job_id, other = find_jobs(story, 2)
    request = story.job(job_id).request
    assert (request.width_px, request.height_px, request.seed, request.negative_prompt) == (
        320,
        256,
        5,
        "fog",
    )
    assert request.style is not None
    assert request.style.style_image
    assert (request.source_px, request.style_px) == ((320, 256), (640, 64))
    assert read_inputs(store_dir, job_id) == read_inputs(store_dir, other) == [(320, 256), (640, 64)]
    finish(story, store_dir, job_id, draw("RGBA"))
    finish(story, store_dir, other, draw("RGBA"))
    answer = asked.result(timeout=30)
    assert answer.background == "transparent"
    assert answer.usage.input_tokens_details.image_tokens == 10 * 8 + 20 * 2


def read_inputs(store_dir: Path, job_id: str) -> list[tuple[int, int]]:
    """Sizes of the pictures that a job has, each read to its end."""
    paths = sorted((store_dir / "inputs" / job_id).iterdir())
    return [Image.open(path).convert("RGB").size for path in paths]


def test_links_are_absolute_as_the_client_sees_the_server(
    settings: ServiceSettings, serve_with: Serve, story: Story, store_dir: Path, pool: ThreadPoolExecutor
) -> None:
    url = serve_with(settings.model_copy(update={"root_path": "/chorale", "allowed_hosts": ("art.example",)}))
    proxied = {"X-Forwarded-Host": "art.example", "X-Forwarded-Proto": "https"}
    client = connect(f"{url}/chorale", default_headers=proxied)
    asked = pool.submit(
        client.images.with_raw_response.generate,
        prompt="x" * 2001,
        model="dall-e-3",
        size="8192x8192",
        response_format="url",
    )
    (job_id,) = find_jobs(story)
    finish(story, store_dir, job_id, b"picture")
    raw = asked.result(timeout=30)
    link = raw.parse().data[0].url
    assert link.startswith(f"https://art.example/chorale/v1/files/{job_id}?")
    assert httpx.get(link.replace("https://art.example", url)).content == b"picture"
    assert (raw.headers["Chorale-Model"], raw.headers["Chorale-Jobs"]) == ("glow", job_id)
    assert raw.headers["Chorale-Prompt-Cut"] == "2000 of 2001 characters were read"
    assert len(story.job(job_id).request.prompt) == 2000
    stream = client.images.generate(prompt="x", size="8192x8192", response_format="url", stream=True)
    finish(story, store_dir, find_jobs(story, 2)[1], b"picture")
    (event,) = stream
    assert (event.url[:20], event.b64_json) == (link[:20], "")


def test_a_list_of_models_is_also_openais(api: httpx.Client, url: str, story: Story) -> None:
    story.publish(CARD.model_copy(update={"name": "some/model", "is_default": False}), worker="w2")
    client = connect(url)
    assert [each.id for each in client.models.list()] == ["glow", "some/model"]
    found = client.models.retrieve("some/model")
    assert (found.id, found.object, found.owned_by) == ("some/model", "model", "chorale")
    assert found.to_dict() == json.loads(api.get("/v1/models").text)["data"][1]
