"""Health, readiness, metrics, request ids, and problem bodies for everything else."""

import json

import httpx
import pytest
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api_schemas.errors import Problem
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
    assert api.delete("/v1/jobs").headers["Allow"] == "GET, POST"
    assert api.put(f"/v1/jobs/{'0' * 28}/image").headers["Allow"] == "GET, HEAD"
    assert api.get(f"/v1/jobs/{'0' * 28}/cancel").headers["Allow"] == "POST"
    assert api.delete("/").headers["Allow"] == "GET"


def test_an_error_inside_tells_nothing_but_its_id(api: httpx.Client, redis: Redis) -> None:
    redis.hset("chorale:models", "broken", "{}")
    answer = api.get("/v1/models", headers={"X-Request-ID": "my-trace.2"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "my-trace.2"
    assert "ModelCard" not in answer.text
