"""Making, reading, listing and cancelling jobs, over HTTP."""

import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from redis import Redis
from rq import Queue

from api_schemas.answers import JobView
from api_schemas.events import Result
from api_schemas.generation import GenerationRequest
from api_schemas.stages import lay_stages
from api_schemas.wire import RUN_JOB, cancel_key, job_key, queue_name
from service.jobs.admission import resolve
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.story import CARD, Story


def create(api: httpx.Client, **choices: object) -> JobView:
    answer = api.post("/v1/jobs", json={"prompt": "lava", **choices})
    assert answer.status_code == 202, answer.text
    return JobView.model_validate_json(answer.content)


def test_a_posted_job_is_resolved_recorded_and_queued(api: httpx.Client, story: Story, redis: Redis) -> None:
    answer = api.post("/v1/jobs", json={"prompt": "glowing orange lava 🌋", "width_px": 2048})
    job = JobView.model_validate_json(answer.content)
    assert answer.status_code == 202
    assert answer.headers["Location"] == job.urls.self == f"/v1/jobs/{job.id}"
    assert (job.status, job.queue_position) == ("queued", 0)
    assert (job.request.model, job.request.steps, job.request.guidance_scale) == ("glow", 12, 5.0)
    assert job.cost.tiles == CARD.estimate(job.request, lay_stages(CARD, job.request)).tiles
    assert job.eta_s == pytest.approx(job.cost.tiles * 0.01, abs=0.1)
    queued = Queue(queue_name("glow"), connection=redis, serializer="json").fetch_job(job.id)
    assert queued is not None
    assert (queued.func_name, list(queued.args)) == (RUN_JOB, [job.id])
    assert queued.retries_left
    assert story.job(job.id).request == job.request
    assert api.get(job.urls.self).json()["request"] == job.request.model_dump(mode="json")


def test_a_given_seed_stays_and_a_missing_one_is_drawn(api: httpx.Client, story: Story) -> None:
    assert create(api, seed=2**63 - 1).request.seed == 2**63 - 1
    assert create(api, seed=0).request.seed == 0
    assert create(api).request.seed != create(api).request.seed


def test_a_drawn_seed_is_one_that_every_json_parser_keeps() -> None:
    """JavaScript's numbers are doubles: 64 drawings of 63 bits would pass 2**53 with all but certainty."""
    seeds = [resolve(GenerationRequest(), CARD).request.seed for _ in range(64)]
    assert all(float(seed) == seed <= 2**53 - 1 for seed in seeds)
    assert max(seeds) > 2**50


@pytest.mark.parametrize(
    ("choices", "field", "words"),
    [
        ({"width_px": 1000, "seamless": "x"}, "width_px", "960 or 1024"),
        ({"height_px": 16_383, "seamless": "both"}, "height_px", "16320 or 16384"),
        ({"width_px": 63}, "width_px", "64"),
        ({"height_px": 16_385}, "height_px", "16384"),
        ({"steps": 101}, "steps", "100"),
        ({"steps": 0}, "steps", "1"),
        ({"model": "unknown"}, "model", "glow"),
        ({"seed": 2**63}, "seed", "9223372036854775807"),
        ({"seed": -1}, "seed", "0"),
        ({"prompt": "x" * 2001}, "prompt", "2000"),
        ({"prompt": "\x00"}, "prompt", "U+0000"),
        ({"promt": "x"}, "promt", "prompt"),
        ({"advanced": {"modules": 3}}, "advanced.modules", "num_modules"),
        ({"advanced": {"overlap_px": 150}}, "advanced.overlap_px", "144 or 152"),
        ({"advanced": {"overlap_px": 200}}, "advanced.overlap_px", "at most 192"),
        ({"advanced": {"tile_size_px": 200}}, "advanced.tile_size_px", "192 or 256"),
        ({"seamless": "z"}, "seamless", "both"),
        ({"loras": [{"name": "ink"}]}, "loras.0.name", "none: model glow (toy) supports no LoRA"),
        ({"control": {"name": "edges"}}, "control.name", "none: model glow (toy) supports no ControlNet"),
        ({"loras": [{"name": "ink", "weight": 4.1}]}, "loras.0.weight", "4"),
        ({"loras": [{"name": "ink"}, {"name": "ink"}]}, "loras", "each LoRA once"),
        ({"fidelity": 0.5}, "fidelity", "nothing without `upscale`"),
        ({"upscale": 2}, "upscale", "nothing without `source`"),
        ({"style": {}}, "style", "nothing without `source`"),
        (
            {"control": {"name": "edges", "start": 0.5, "end": 0.5}},
            "control.start",
            "less than `end`, which is 0.5",
        ),
        ({"loras": [{"name": str(number)} for number in range(9)]}, "loras", "8"),
        ({"advanced": {"stages": [{"step": 3}]}}, "advanced.stages.0.step", "steps, strength"),
        ({"loras": [{"nam": "ink"}]}, "loras.0.nam", "name, weight"),
        ({"advanced": {"positions": "global"}}, "advanced.positions", "local"),
        ({"guidance_scale": 0.5}, "guidance_scale", "1"),
        ({"advanced": {"guidance_interval": [0.8, 0.2]}}, "advanced.guidance_interval", "[0.2, 0.8]"),
        ({"advanced": {"guidance_interval": [-0.1, 1]}}, "advanced.guidance_interval.0", "0"),
        ({"advanced": {"guidance_interval": [0, 1.5]}}, "advanced.guidance_interval.1", "1"),
        ({"advanced": {"guidance_interval": [0.5]}}, "advanced.guidance_interval", "[start, end]"),
        ({"advanced": {"guidance_interval": [False, True]}}, "advanced.guidance_interval.0", "number"),
        ({"advanced": {"guidance_interval": 0.5}}, "advanced.guidance_interval", "two numbers from 0 to 1"),
        ({"source": {"job": "latest"}}, "source.job", "28 hexadecimal digits"),
        ({"bit_depth": 12}, "bit_depth", "8 or 16"),
        ({"bit_depth": 16, "output_format": "jpeg"}, "bit_depth", "png or tiff, not jpeg"),
        ({"bit_depth": 16, "output_format": "webp"}, "bit_depth", "png or tiff, not webp"),
        ({"width_px": 16_384, "output_format": "webp"}, "output_format", "the picture has 16384"),
        ({"output_quality": 101, "output_format": "jpeg"}, "output_quality", "100"),
        ({"output_quality": 90}, "output_quality", "jpeg or webp, not png"),
        ({"dpi": 0}, "dpi", "1"),
        ({"dpi": 2401}, "dpi", "2400"),
        ({"dpi": 72.5}, "dpi", "a whole number from 1 to 2400"),
    ],
)
def test_a_refused_value_is_named_with_what_is_allowed(
    api: httpx.Client, story: Story, choices: dict[str, object], field: str, words: str
) -> None:
    answer = api.post("/v1/jobs", json={"prompt": "lava", **choices})
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    errors = {each["field"]: each for each in answer.json()["errors"]}
    assert words in errors[field]["allowed"]
    assert not errors[field]["allowed"].startswith("Value error"), "pydantic's words before ours"
    assert api.get("/v1/jobs").json()["data"] == []


def test_only_the_side_that_is_seamless_must_be_a_multiple(api: httpx.Client, story: Story) -> None:
    for seamless, size in (("none", (2480, 3508)), ("x", (1024, 65)), ("y", (65, 1024))):
        made = create(api, width_px=size[0], height_px=size[1], seamless=seamless)
        assert (made.request.width_px, made.request.height_px) == size
    answer = api.post("/v1/jobs", json={"width_px": 65, "height_px": 16_380, "seamless": "both"})
    errors = {each["field"]: each["allowed"] for each in answer.json()["errors"]}
    assert "the nearest: 64 or 128" in errors["width_px"]
    assert "the nearest: 16320 or 16384" in errors["height_px"]


def test_a_negative_prompt_that_would_have_no_effect_is_refused(api: httpx.Client, story: Story) -> None:
    story.publish(CARD.model_copy(update={"negative_prompt": False}))
    answer = api.post("/v1/jobs", json={"negative_prompt": "frogs"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "negative_prompt")


@pytest.mark.parametrize("prompt", ["", "日本語のプロンプト", "🌋" * 2000, "a\nb\t\u202e", "x" * 2000])
def test_any_prompt_in_any_language_is_taken_as_it_is(api: httpx.Client, story: Story, prompt: str) -> None:
    assert story.job(create(api, prompt=prompt).id).request.prompt == prompt


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b"nul"],
    ids=["cut", "empty", "no-utf8", "deep", "huge-number", "word"],
)
def test_an_undecodable_body_is_refused(api: httpx.Client, story: Story, body: bytes) -> None:
    answer = api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("invalid_json", "invalid_request")


def test_half_a_character_is_refused_and_the_refusal_can_be_read(api: httpx.Client, story: Story) -> None:
    answer = api.post(
        "/v1/jobs", content=rb'{"prompt": "\ud800"}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "prompt"


def test_a_body_that_is_too_large_is_refused(
    serve_with: Serve, settings: ServiceSettings, story: Story
) -> None:
    url = serve_with(settings.model_copy(update={"max_body_bytes": 2048}))
    body = b'{"prompt": "' + b"x" * 4000 + b'"}'
    headers = {"Content-Type": "application/json"}
    for content in (body, iter([body[:1500], body[1500:]])):  # announced, and in chunks
        answer = httpx.post(f"{url}/v1/jobs", content=content, headers=headers)
        assert (answer.status_code, answer.json()["status"]) == (413, 413)


def test_without_a_model_the_client_is_told_to_come_back(api: httpx.Client, redis: Redis) -> None:
    """And why, where a worker has said that it cannot start."""
    answer = api.post("/v1/jobs", json={"prompt": "lava"})
    assert (answer.status_code, answer.json()["code"]) == (503, "no_model")
    assert answer.json()["detail"] == "no worker has announced a model yet"
    assert int(answer.headers["Retry-After"]) > 0
    redis.set("chorale:paused:w1", "disk_unwritable: the work folder cannot be written")
    redis.sadd("chorale:paused", "w1")
    answer = api.post("/v1/jobs", json={"prompt": "lava"})
    assert (answer.status_code, answer.json()["code"]) == (503, "no_model")
    assert answer.json()["detail"].endswith("; paused: disk_unwritable: the work folder cannot be written")


def test_variations_are_made_all_or_none_and_a_key_is_for_so_many(
    serve_with: Serve, settings: ServiceSettings, story: Story
) -> None:
    with httpx.Client(base_url=serve_with(settings.model_copy(update={"max_queued": 4}))) as api:
        parent = create(api)
        story.start(parent.id)
        story.succeed(
            parent.id,
            Result(
                image_key=f"jobs/{parent.id}/one/image.png", pyramid_key=f"jobs/{parent.id}/one", width_px=1024,
                height_px=1024, media_type="image/png", size_bytes=1, sha256="0" * 64, engine_s=1.0,
            ),
        )  # fmt: skip
        url = f"/v1/jobs/{parent.id}/variations"
        answer = api.post(url, json={"count": 8})
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
        assert len(api.get("/v1/jobs").json()["data"]) == 1
        key = {"Idempotency-Key": "k"}
        assert api.post(url, json={"count": 2}, headers=key).status_code == 202
        answers = [api.post(url, json={"count": count}, headers=key).status_code for count in (1, 3)]
        assert (answers, len(api.get("/v1/jobs").json()["data"])) == ([422, 422], 3)
        while api.post("/v1/jobs", json={"prompt": "lava"}).status_code == 202:
            pass  # until the queue is full
        assert api.post(url, json={"count": 2}).status_code == 503
        assert api.post(url, json={"count": 2}, headers=key).status_code == 202  # they are there


def test_unknown_jobs_are_404_everywhere(api: httpx.Client) -> None:
    for name in ("0" * 28, "..", "%00", "a%20b", "ü", "x" * 500):
        for path in ("", "/image", "/image.dzi", "/tiles/0/0_0", "/events"):
            answer = api.get(f"/v1/jobs/{name}{path}")
            assert answer.status_code == 404, (name, path)
            assert answer.json()["code"] == "not_found"
        assert api.post(f"/v1/jobs/{name}/cancel").status_code == 404


def test_twenty_posts_with_one_key_make_one_job(api: httpx.Client, story: Story) -> None:
    def post(_: int) -> httpx.Response:
        return api.post("/v1/jobs", json={"prompt": "lava"}, headers={"Idempotency-Key": "one"})

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert set(Counter(answer.status_code for answer in answers)) <= {202, 409}
    made = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    assert len(made) == 1
    assert all(answer.headers["Retry-After"] for answer in answers if answer.status_code == 409)
    assert post(0).json()["id"] in made
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_a_key_is_bound_to_its_body_and_free_again_after_a_refusal(api: httpx.Client, story: Story) -> None:
    headers = {"Idempotency-Key": "k"}
    refused = api.post("/v1/jobs", json={"width_px": 63}, headers=headers)
    assert refused.status_code == 422
    made = api.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    assert made.status_code == 202
    other = api.post("/v1/jobs", json={"prompt": "b"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    again = api.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    assert again.json()["id"] == made.json()["id"]


def test_waiting_answers_with_the_finished_job(api: httpx.Client, story: Story) -> None:
    def work() -> None:
        while not (page := api.get("/v1/jobs").json()["data"]):
            time.sleep(0.02)
        story.start(page[0]["id"])
        story.fail(page[0]["id"])

    worker = threading.Thread(target=work)
    worker.start()
    answer = api.post("/v1/jobs", json={"prompt": "lava"}, headers={"Prefer": "respond-async, wait=20"})
    worker.join()
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert answer.elapsed.total_seconds() < 10


def test_waiting_ends_in_time(api: httpx.Client, story: Story) -> None:
    answer = api.post("/v1/jobs", json={"prompt": "lava"}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert 0.9 < answer.elapsed.total_seconds() < 10


def test_a_queued_job_is_canceled_at_once_and_once(api: httpx.Client, story: Story, redis: Redis) -> None:
    job = create(api)
    answers = [api.post(job.urls.cancel) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.json()["status"] for answer in answers] == ["canceled"] * 3
    assert [event.type for event in story.log(job.id)] == ["job.queued", "job.canceled"]
    assert len(Queue(queue_name("glow"), connection=redis, serializer="json")) == 0


def test_a_running_job_is_told_to_stop(api: httpx.Client, story: Story, redis: Redis) -> None:
    job = create(api)
    story.start(job.id)
    answer = api.post(job.urls.cancel)
    assert (answer.status_code, answer.json()["status"]) == (202, "processing")
    assert redis.exists(cancel_key(job.id))
    assert [event.type for event in story.log(job.id)] == ["job.queued", "job.started"]


def test_a_cancel_that_meets_the_start_leaves_a_sound_log(api: httpx.Client, story: Story) -> None:
    jobs = [create(api) for _ in range(20)]
    with ThreadPoolExecutor(2) as pool:
        starts = pool.submit(lambda: [story.start_if_queued(job.id) for job in jobs])
        cancels = pool.submit(lambda: [api.post(job.urls.cancel).json()["status"] for job in jobs])
        starts.result()
        answers = cancels.result()
    for job, answered in zip(jobs, answers, strict=True):
        kinds = [event.type for event in story.log(job.id)]
        assert kinds in (["job.queued", "job.started"], ["job.queued", "job.canceled"])
        assert (answered == "canceled") == ("job.canceled" in kinds)


def test_ids_grow_and_cannot_be_guessed(api: httpx.Client, story: Story, redis: Redis) -> None:
    ids = [create(api).id for _ in range(5)]
    assert all(re.fullmatch("[0-9a-f]{28}", job_id) for job_id in ids)
    assert ids == sorted(ids)
    assert len({job_id[12:] for job_id in ids}) == 5
    assert all(redis.exists(job_key(job_id)) for job_id in ids)
