"""Health, readiness, metrics, request ids, and problem bodies for everything else."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api_schemas.errors import Problem
from api_schemas.wire import MODELS_KEY
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.story import CARD, Story


def test_readiness_names_what_is_missing(api: httpx.Client, redis: Redis) -> None:
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["workers"]) == (503, [])
    Story(redis).publish(worker="w7")
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "ready": True,
            "queue": "ok",
            "store": "ok",
            "workers": ["w7"],
            "models": ["glow"],
            "degraded": {},
            "paused": {},
            "parts": [
                {"name": part, "ready": True, "message": ""}
                for part in ("queue", "store", "disk", "workers", "webhooks")
            ],
            "background": {},
        },
    )
    redis.set("chorale:trouble:w7", "degraded: lost cuda:1; continues on cuda:0")
    answer = api.get("/readyz")
    assert answer.json()["degraded"] == {"w7": "degraded: lost cuda:1; continues on cuda:0"}
    assert answer.json()["ready"]
    assert "chorale_workers_degraded 1.0" in api.get("/metrics").text
    redis.delete("chorale:worker:w7")
    assert api.get("/readyz").status_code == 503
    assert [card["name"] for card in api.get("/v1/models").json()["data"]] == ["glow"]  # the card stays


def test_what_a_killed_worker_has_said_is_not_told_beside_its_successor(
    api: httpx.Client, redis: Redis
) -> None:
    """Its connection is gone, what it said expires later; who waits for its work folder has no model yet, and is told."""
    for worker in ("killed", "waits"):
        redis.set(f"chorale:paused:{worker}", f"disk_full: {worker}")
        redis.sadd("chorale:paused", worker)
    for worker in ("killed", "w7"):
        Story(redis).publish(worker=worker)
    redis.set("chorale:connected:killed", "1")
    assert api.get("/readyz").json()["paused"] == {"waits": "disk_full: waits"}


def test_without_a_models_card_nothing_is_ready_as_nothing_is_taken(
    api: httpx.Client, redis: Redis, story: Story
) -> None:
    redis.delete(MODELS_KEY)
    assert api.post("/v1/jobs", json={}).status_code == 503
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["parts"][3]["message"]) == (
        503,
        "no worker has announced its model yet",
    )
    story.publish()
    assert api.get("/readyz").status_code == 200


def test_a_queue_server_that_hangs_is_reported_while_it_hangs(
    api: httpx.Client, redis: Redis, story: Story
) -> None:
    assert api.post("/v1/jobs", json={}).status_code == 202
    redis.client_pause(3000)  # ms, in which it takes connections and answers nobody
    assert api.get("/v1/jobs").status_code == 503
    redis.ping()
    assert api.get("/v1/jobs").status_code == 200


def test_the_default_model_comes_first(api: httpx.Client, redis: Redis) -> None:
    for name, default in (("b", False), ("z", True), ("a", False)):
        Story(redis).publish(
            CARD.model_copy(update={"name": name, "is_default": default}), worker=f"w-{name}"
        )
    assert [card["name"] for card in api.get("/v1/models").json()["data"]] == ["z", "a", "b"]
    assert api.post("/v1/jobs", json={}).json()["request"]["model"] == "z"
    assert api.post("/v1/jobs", json={"model": "b"}).json()["request"]["model"] == "b"


def test_a_model_that_nobody_serves_is_not_the_default_one(api: httpx.Client, redis: Redis) -> None:
    Story(redis).publish(CARD.model_copy(update={"name": "old"}), worker="gone")
    Story(redis).publish(CARD.model_copy(update={"name": "new", "is_default": False}))
    redis.delete("chorale:worker:gone")
    cards = api.get("/v1/models").json()["data"]
    assert [(card["name"], card["is_default"]) for card in cards] == [("new", True), ("old", False)]
    assert api.post("/v1/jobs", json={}).json()["request"]["model"] == "new"


def test_metrics_count_routes_and_not_paths(api: httpx.Client, story: Story) -> None:
    for _ in range(3):
        job = api.post("/v1/jobs", json={"prompt": "lava"}).json()
        api.get(job["urls"]["self"])
    text = api.get("/metrics").text
    assert 'chorale_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 3.0' in text
    assert "chorale_jobs_created_total 3.0" in text
    assert 'chorale_jobs_waiting{model="glow"} 3.0' in text
    assert 'chorale_workers{model="glow"} 1.0' in text
    assert job["id"] not in text


def test_paths_without_a_route_are_one_series(api: httpx.Client) -> None:
    for path in ("/nowhere", "/v1/jobs/one/", "/v1/jobs/two/"):
        api.get(path, follow_redirects=False)
    counted = [line for line in api.get("/metrics").text.splitlines() if "requests_total{" in line]
    assert {line.partition('route="')[2].partition('"')[0] for line in counted} == {"unmatched"}


def test_every_answer_has_a_request_id_and_takes_a_harmless_one(api: httpx.Client) -> None:
    ids = {api.get("/healthz").headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5
    answer = api.get("/nowhere", headers={"X-Request-ID": "my-trace.1"})
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "my-trace.1"
    with pytest.raises(InvalidStatus) as refusal:
        connect(str(api.base_url).replace("http", "ws") + "/v1/jobs/0/ws")
    refused = refusal.value.response
    assert refused.body is not None
    assert refused.headers["X-Request-ID"] == json.loads(refused.body)["request_id"]
    for bad in ("a b", "x" * 65, "<script>", ""):
        assert api.get("/healthz", headers={"X-Request-ID": bad}).headers["X-Request-ID"] != bad


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/viewer/../settings.py", 404, "not_found"),
        ("GET", "/viewer/%2e%2e/settings.py", 404, "not_found"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("PATCH", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/v1/jobs?limit=101", 422, "invalid_request"),
        ("GET", "/v1/jobs?status=sleeping", 422, "invalid_request"),
    ],
)
def test_every_refusal_is_a_problem(
    api: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = api.request(method, path)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert (problem.status, problem.code) == (status, code)
    assert problem.request_id == answer.headers["X-Request-ID"]


def test_a_refused_method_names_all_that_are_allowed(api: httpx.Client) -> None:
    assert api.delete("/v1/jobs").headers["Allow"] == "GET, HEAD, POST"
    assert api.put(f"/v1/jobs/{'0' * 28}/image").headers["Allow"] == "GET, HEAD"
    assert api.get(f"/v1/jobs/{'0' * 28}/cancel").headers["Allow"] == "POST"
    assert api.delete("/").headers["Allow"] == "GET, HEAD"


def test_whatever_answers_get_answers_head(api: httpx.Client, story: Story) -> None:
    """With the same status and headers, and without a body (RFC 9110, 9.3.2)."""
    story.queue("5" * 28)
    described = api.get("/openapi.json").json()["paths"]
    paths = [path for path, methods in described.items() if "get" in methods and "events" not in path]
    paths += ["/", "/docs", "/openapi.json", "/viewer/main.js"]
    assert len(paths) >= 14
    for path in paths:
        for name, value in (("job_id", "5" * 28), ("level", "9"), ("column", "0"), ("row", "0")):
            path = path.replace(f"{{{name}}}", value)
        whole, head = api.get(path), api.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    events = api.head(f"/v1/jobs/{'5' * 28}/events")  # at once, though the job goes on
    assert (events.status_code, events.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")


def test_an_error_inside_tells_nothing_but_its_id(settings: ServiceSettings) -> None:
    def fail() -> None:
        raise RuntimeError("secret")

    async def ask() -> httpx.Response:
        app = create_app(settings)
        app.add_api_route("/fail", fail)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/fail", headers={"X-Request-ID": "my-trace.2"})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "my-trace.2"
    assert "secret" not in answer.text


def test_a_store_that_cannot_be_opened_at_the_start_is_said_so(
    settings: ServiceSettings, serve_with: Serve, story: Story, tmp_path: Path
) -> None:
    """And is used as soon as it is there."""
    (tmp_path / "disk").write_text("a file where a folder should be")
    away = settings.model_copy(update={"store_url": (tmp_path / "disk" / "store").as_uri()})
    with httpx.Client(base_url=serve_with(away), timeout=30) as api:
        body = api.get("/readyz").json()
        assert [part["name"] for part in body["parts"] if not part["ready"]] == ["store"]
        assert (body["ready"], body["store"]) == (False, "unreachable")
        (tmp_path / "disk").unlink()
        assert api.get("/readyz").json()["ready"]


def test_workers_that_take_no_jobs_are_told_with_their_reason(
    api: httpx.Client, redis: Redis, story: Story
) -> None:
    story.publish(worker="w2")
    for worker, reason in (("w1", "disk_full: no space"), ("w2", "invented: else")):
        redis.set(f"chorale:paused:{worker}", reason)
        redis.sadd("chorale:paused", worker)
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["paused"] == {"w1": "disk_full: no space", "w2": "invented: else"}
    text = api.get("/metrics").text
    assert 'chorale_workers_paused{reason="disk_full"} 1.0' in text
    assert 'chorale_workers_paused{reason="other"} 1.0' in text
    assert "invented" not in text
    redis.delete("chorale:paused:w2")
    assert api.get("/readyz").status_code == 200  # one goes on


def test_a_job_for_which_the_disk_has_no_space_is_refused_with_both_numbers(
    settings: ServiceSettings, serve_with: Serve, story: Story
) -> None:
    greedy = settings.model_copy(update={"disk_reserve_mb": 1 << 30})
    with httpx.Client(base_url=serve_with(greedy), timeout=30) as api:
        answer = api.post("/v1/jobs", json={"prompt": "lava", "width_px": 4096, "height_px": 4096})
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["retryable"]) == (503, "disk_full", True)
        assert int(answer.headers["Retry-After"]) > 0
        numbers = re.findall(r"([0-9.]+) [MG]iB", problem["detail"])
        need, free, kept = map(float, numbers)
        assert 48 < need < 200  # MiB; its plain pixels are 48
        assert free > 0
        assert kept == 1 << 20  # GiB
        assert api.get("/v1/jobs").json()["data"] == []
        body = api.get("/readyz").json()
        assert [part["name"] for part in body["parts"] if not part["ready"]] == ["disk"]
