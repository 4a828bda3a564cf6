"""Limits of API keys over HTTP: calls, megapixel-steps, stored bytes, and what is told of what was used."""

import math
import time
from pathlib import Path

import http_sf
import httpx
import openai
import pytest
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api_schemas.usage import calls_key, running_key
from api_schemas.wire import input_key
from service.settings import ServiceSettings
from tests.service.callers import admit
from tests.service.conftest import serve
from tests.service.images.test_uploads import encode
from tests.service.images.test_uploads import post as post_pictures
from tests.service.jobs.test_reconciler import eventually
from tests.service.routes.quotas.asking import (
    ADMIN,
    FREE,
    KEYS,
    QUEUED,
    RATED,
    STORED,
    WORKED,
    Call,
    finish,
    post,
    require_refusal,
    use,
)
from tests.story import CARD, Story


def read_list(header: str) -> list[tuple[str, dict[str, int]]]:
    """A list of strings with parameters (RFC 9651), as another program reads it."""
    return http_sf.parse(header.encode(), tltype="list")


def test_calls_over_the_rate_are_refused_and_each_answer_says_how_many_are_left(
    call: Call, address: str, redis: Redis
) -> None:
    client = call(RATED)
    answers = [client.get("/v1/jobs"), client.get("/v1/jobs/none"), post(client)]
    assert [answer.status_code for answer in answers] == [200, 404, 202]
    refused = client.get("/v1/jobs")
    wait_s = require_refusal(refused, "calls", "rate_limited")
    assert wait_s == pytest.approx(20, abs=1)
    for number, answer in enumerate([*answers, refused]):
        assert read_list(answer.headers["RateLimit-Policy"]) == [("calls", {"q": 3, "w": 60})]
        ((policy, left),) = read_list(answer.headers["RateLimit"])
        assert (policy, left["r"]) == ("calls", max(0, 2 - number))
        assert 18 <= left["t"] <= 20
    assert read_list(refused.headers["RateLimit"])[0][1]["t"] == wait_s
    socket = f"{address.replace('http', 'ws')}/v1/jobs/{answers[2].json()['id']}/ws"
    with pytest.raises(InvalidStatus) as closed:
        connect(socket, additional_headers={"Authorization": f"Bearer {RATED}"})
    assert (closed.value.response.status_code, closed.value.response.headers["Retry-After"]) == (
        429,
        str(wait_s),
    )
    for path in ("/healthz", "/readyz", "/metrics", "/", f"/v1/jobs/{answers[2].json()['id']}/tiles/0/0_0"):
        free = client.get(path)
        assert free.status_code != 429, path
        assert "RateLimit" not in free.headers
    redis.incrby(calls_key(RATED), -wait_s * 1_000_000)  # as if so long had passed
    assert use(client).calls.used == 3
    assert client.get("/v1/jobs").status_code == 429
    metrics = client.get("/metrics").text
    assert 'chorale_quota_refusals_total{limit="calls"} 3.0' in metrics
    assert 'chorale_quota_refusals_total{limit="store_bytes"} 0.0' in metrics


def test_without_a_key_or_a_limit_nothing_is_counted(call: Call, redis: Redis) -> None:
    for client in (call(""), call(FREE)):
        answers = [client.get("/v1/jobs") for _ in range(8)] + [post(client)]
        assert {answer.status_code for answer in answers} == {200, 202}
        assert not any("ratelimit" in name for answer in answers for name in answer.headers)
    assert redis.keys("chorale:usage:*:calls") == []
    assert call("").get("/v1/usage").status_code == 404
    assert use(call(FREE)).queued_jobs.used == 1


def test_megapixel_steps_are_used_up_and_given_back_by_a_job_that_never_began(
    call: Call, story: Story
) -> None:
    client = call(WORKED)
    never = post(client, steps=100)
    assert (never.status_code, never.json()["errors"][0]["field"]) == (422, "megapixel_steps")
    assert "at most 30 megapixel-steps" in never.json()["errors"][0]["allowed"]
    ids = [post(client, idempotency_key=word).json()["id"] for word in "ab"]
    assert post(client, idempotency_key="a").json()["id"] == ids[0]
    used = use(client).megapixel_steps
    assert (used.used, used.limit, used.window_s) == (
        pytest.approx(2 * 1024**2 * 12 / 1e6, abs=0.01),
        30,
        86_400,
    )
    assert used.free_at == pytest.approx(time.time() + 86_400, abs=5)
    wait_s = require_refusal(post(client), "megapixel_steps")
    assert wait_s is not None
    first_left = story.job(ids[0]).created_at + 86_400  # with the first of them enough is free
    assert wait_s == pytest.approx(math.ceil(first_left - time.time()), abs=1)
    client.post(f"/v1/jobs/{ids[0]}/cancel")
    assert use(client).megapixel_steps.used == pytest.approx(used.used / 2)
    story.start(ids[1])
    story.cancel(ids[1])
    assert use(client).megapixel_steps.used == pytest.approx(used.used / 2)  # it had begun
    assert post(client).status_code == 202


def test_stored_bytes_are_limited_until_retention_frees_them(
    call: Call, story: Story, module_settings: ServiceSettings, redis: Redis
) -> None:
    client = call(STORED)
    jobs = [post(client).json()["id"] for _ in range(2)]
    finish(story, jobs[0], 400)
    assert post(client).status_code == 202
    finish(story, jobs[1], 600)
    refused = post(client)
    kept_s = module_settings.retention_days * 86_400
    assert require_refusal(refused, "store_bytes") == pytest.approx(kept_s, abs=10)
    assert "removed 30 days after their end" in refused.json()["detail"]
    assert use(client).store_bytes.model_dump() == {"used": 1000, "limit": 1000}
    forever = module_settings.model_copy(update={"retention_days": 0.0})
    with serve(forever, lambda app: admit(app, KEYS)) as url:
        answer = httpx.post(f"{url}/v1/jobs", json={}, headers={"Authorization": f"Bearer {STORED}"})
    assert require_refusal(answer, "store_bytes") is None
    assert "kept for ever" in answer.json()["detail"]
    redis.zadd("chorale:jobs", {jobs[0]: 1.0})
    short = module_settings.model_copy(update={"retention_days": 0.5 / 86_400})
    with serve(short, lambda app: admit(app, KEYS)):
        assert eventually(lambda: use(client).store_bytes.used == 0)
    assert post(client).status_code == 202


def test_pictures_that_were_sent_count_and_none_is_decoded_for_a_key_without_a_place(
    call: Call, story: Story, module_settings: ServiceSettings
) -> None:
    client, store = call(QUEUED), Path(module_settings.store_url.removeprefix("file://"))
    story.publish(CARD.model_copy(update={"controlnets": ["edges"]}))
    jobs = [post_pictures(client, control_image=encode()).json()["id"] for _ in range(2)]
    stored = sum((store / input_key(job_id, "control_image")).stat().st_size for job_id in jobs)
    assert use(client).store_bytes.used == stored > 0
    assert require_refusal(post_pictures(client, control_image=b"no picture"), "queued_jobs")
    client.post(f"/v1/jobs/{jobs[0]}/cancel")
    assert post_pictures(client, control_image=b"no picture").status_code == 422
    assert use(client).store_bytes.used == stored  # kept as long as the job


def test_reads_work_while_the_queue_server_refuses_writes_and_its_absence_is_told(
    call: Call, redis: Redis, module_settings: ServiceSettings
) -> None:
    client = call(RATED)
    redis.config_set("maxmemory", 1)
    try:
        answers = [client.get("/v1/jobs") for _ in range(5)]
    finally:
        redis.config_set("maxmemory", 0)
    assert {answer.status_code for answer in answers} == {200}
    nowhere = module_settings.model_copy(update={"redis_url": "unix:///nowhere/queue.sock"})
    with serve(nowhere, lambda app: admit(app, KEYS)) as url:
        away = httpx.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {RATED}"})
    assert (away.status_code, away.json()["code"]) == (503, "service_unavailable")
    assert away.headers["Retry-After"] == "5"


def test_openais_clients_read_the_same_refusals_in_its_words(call: Call, address: str, story: Story) -> None:
    def ask(key: str, **choices: object) -> tuple[int, object, object, str]:
        with (
            pytest.raises(openai.APIStatusError) as refused,
            openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=5) as client,
        ):
            client.images.generate(prompt="x", **choices)
        said = refused.value
        return said.status_code, said.code, said.param, said.response.headers["X-Should-Retry"]

    for key in (QUEUED, WORKED, STORED, RATED):
        for _ in range(3 if key == RATED else 2):
            last = post(call(key)).json()["id"]
        if key == STORED:
            finish(story, last, 1000)
    assert ask(QUEUED) == (429, "insufficient_quota", "n", "true")  # half a minute
    assert ask(QUEUED, n=3) == (400, "invalid_value", "n", "false")
    assert ask(WORKED) == (429, "insufficient_quota", "size", "false")  # a day
    assert ask(WORKED, quality="max") == (400, "invalid_value", "size", "false")
    assert ask(STORED) == (429, "insufficient_quota", None, "false")
    assert ask(RATED) == (429, "rate_limit_exceeded", None, "true")
    with (
        pytest.raises(openai.RateLimitError) as refused,
        openai.OpenAI(base_url=f"{address}/v1", api_key=RATED, max_retries=0) as client,
    ):
        client.models.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert require_refusal(call(RATED).get("/v1/models"), "calls", "rate_limited")


def test_usage_of_another_key_is_for_admins(call: Call) -> None:
    for key in (QUEUED, ADMIN):
        post(call(key))
    assert use(call(QUEUED), QUEUED) == use(call(QUEUED))
    assert use(call(ADMIN), QUEUED).queued_jobs.model_dump() == {"used": 1, "limit": 2}
    assert use(call(ADMIN), QUEUED).key_id == QUEUED
    assert call(QUEUED).get("/v1/usage", params={"key_id": ADMIN}).status_code == 403
    assert call(ADMIN).get("/v1/usage", params={"key_id": "0" * 12}).status_code == 404


def test_a_count_that_went_wrong_is_put_right(call: Call, story: Story, redis: Redis) -> None:
    """As after damage, or by a worker of a version that counts nothing."""
    client = call(QUEUED)
    waits, runs = (post(client).json()["id"] for _ in range(2))
    story.start(runs)
    account = running_key(QUEUED).removesuffix(":running")
    redis.smove(f"{account}:running", f"{account}:queued", runs)
    redis.sadd(f"{account}:running", waits, "never", b"\xff\xfe")
    assert eventually(lambda: (use(client).queued_jobs.used, use(client).concurrent_jobs.used) == (1, 1))
    redis.delete(*redis.keys(f"{account}*"))
    assert eventually(lambda: (use(client).queued_jobs.used, use(client).concurrent_jobs.used) == (1, 1))
    assert use(client).megapixel_steps.used > 0
