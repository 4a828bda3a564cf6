"""A job that has not started, or not ended, in time expires, whatever has become of it meanwhile."""

import time

import httpx
from redis import Redis
from rq import Queue

from api_schemas.wire import EXPIRED, cancel_key, queue_name
from tests.service.jobs.test_reconciler import eventually, list_queued
from tests.story import CARD, Story

LEASES = f"rq:wip:{queue_name(CARD.name)}"


def post(api: httpx.Client, **choices: object) -> str:
    answer = api.post("/v1/jobs", json={"prompt": "lava"} | choices)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def status(api: httpx.Client, job_id: str) -> str:
    return api.get(f"/v1/jobs/{job_id}").json()["status"]


def hold(redis: Redis, job_id: str, seconds: float = 600) -> None:
    """As a worker that has started the job."""
    redis.zadd(LEASES, {f"{job_id}:run": time.time() + seconds})


def test_jobs_expire_that_do_not_start_or_end_in_time(api: httpx.Client, story: Story, redis: Redis) -> None:
    released = post(api, start_within_s=0.3)
    late = post(api, start_within_s=0.3, finish_within_s=500)
    started, left, held = (post(api, finish_within_s=0.4) for _ in range(3))
    in_time = post(api, start_within_s=0.4)
    unhurried = post(api, finish_within_s=500)
    for job_id in (started, left, held, in_time):
        story.start(job_id)
    hold(redis, held)
    hold(redis, left, -1)  # its worker is gone
    story.cancel(started)
    assert eventually(lambda: {status(api, each) for each in (released, late, left)} == {"expired"})
    job = api.get(f"/v1/jobs/{late}").json()
    assert job["error"] == {
        "code": "deadline_missed",
        "message": "it had not started within 0.3 s (start_within_s)",
        "retryable": True,
    }
    assert "0.4 s (finish_within_s)" in api.get(f"/v1/jobs/{left}").json()["error"]["message"]
    assert [event.type for event in story.log(late)] == ["job.queued", "job.expired"]
    assert eventually(lambda: redis.get(cancel_key(held)) == EXPIRED.encode())  # its worker ends it
    assert [status(api, each) for each in (held, in_time, started, unhurried)] == [
        "processing", "processing", "canceled", "queued",
    ]  # fmt: skip
    redis.zrem(LEASES, f"{held}:run")
    assert eventually(lambda: status(api, held) == "expired")
    assert eventually(lambda: redis.zrange("chorale:deadlines", 0, -1) == [unhurried.encode()])
    queue = Queue(queue_name(CARD.name), connection=redis, serializer="json")
    assert eventually(lambda: sorted(list_queued(queue)) == [in_time, unhurried])
    assert 'chorale_jobs_ended_total{outcome="expired"} 4.0' in api.get("/metrics").text
    assert api.get(f"/v1/jobs/{late}/image").status_code == 409
    assert '"type":"job.expired"' in api.get(f"/v1/jobs/{late}/events").text  # and the stream ends


def test_deadlines_are_put_back_from_the_records(api: httpx.Client, story: Story, redis: Redis) -> None:
    job_id = post(api, start_within_s=1.5)
    redis.delete("chorale:deadlines")
    redis.set("chorale:deadlines", "x")
    assert eventually(lambda: status(api, job_id) == "expired")
    assert api.get("/readyz").json()["background"] == {}


REFUSED = [
    ("priority", "urgent", "low, normal or high"),
    ("start_within_s", 0, "0"),
    ("finish_within_s", -1, "0"),
    ("finish_within_s", 1e9, "2592000"),
    ("start_within_s", True, "above 0 and up to 2592000"),
    ("start_within_s", "soon", "number"),
]


def test_what_is_no_priority_or_deadline_is_refused(api: httpx.Client, story: Story) -> None:
    for field, value, allowed in REFUSED:
        answer = api.post("/v1/jobs", json={"prompt": "lava", field: value})
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["field"]) == (422, field)
        assert allowed in error["allowed"]
