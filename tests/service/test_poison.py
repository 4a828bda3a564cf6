"""One record that cannot be read is skipped, told once and counted, and all others are as before."""

import json
import time
from contextlib import suppress

import httpx
import pytest
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from websockets.sync.client import connect

from api_schemas.events import Result
from api_schemas.webhook import DUE_KEY, OUTCOMES_KEY, WEBHOOK_WORKERS_KEY, deliveries_key
from api_schemas.wire import (
    cancel_key,
    children_key,
    events_key,
    job_key,
    previews_key,
    queue_name,
)
from service.settings import ServiceSettings
from tests.poison import NO_TEXT, Poison, change_type, spoil
from tests.story import CARD, Story

PATIENCE_S = 20
CHILD = "7" * 28
RESULT = Result(
    image_key="jobs/8/one/image.png", pyramid_key="jobs/8/one", media_type="image/png", width_px=1024, height_px=1024,
    size_bytes=1, sha256="0" * 64, engine_s=1.0,
)  # fmt: skip
OTHER = CARD.model_copy(update={"name": "ember", "is_default": False})


class Scene:
    """Jobs in every state, the keys that they have in Redis, and how to have all of them again."""

    def __init__(self, api: httpx.Client, redis: Redis, story: Story) -> None:
        self._api, self._redis, self._story = api, redis, story
        story.publish(OTHER, worker="w2")
        webhook = {"url": "https://receiver.example", "secret": f"whsec_{'A' * 32}"}
        api.put("/v1/webhook", json=webhook)
        posted = [
            api.post(
                "/v1/jobs", json={"prompt": "lava", "webhook": webhook}, headers={"Idempotency-Key": key}
            )
            for key in "ab"
        ]
        self.spoilt, self.running = (answer.json()["id"] for answer in posted)
        story.preview(self.spoilt, 0, 0, level=1)
        redis.set(cancel_key(self.spoilt), "1")
        redis.hset(deliveries_key(self.spoilt), "job.started/job", '{"tries": 1}')
        redis.zadd(DUE_KEY, {f"{self.spoilt}/job.started/job": 0})
        redis.hset(OUTCOMES_KEY, "delivered", 3)
        redis.zadd(WEBHOOK_WORKERS_KEY, {"w": time.time()})
        story.start(self.running)
        story.step(self.running, 1)
        story.queue(CHILD, parent=self.running)
        redis.sadd(children_key(self.running), CHILD)
        self._kept = {key: redis.dump(key) for key in redis.scan_iter()}

    def list_keys(self) -> list[bytes]:
        """All but those of the job that is to be as before, and of its child."""
        kept = self.running.encode(), CHILD.encode()
        keys = [key for key in sorted(self._kept) if not any(job_id in key for job_id in kept)]
        return [*keys, children_key(self.running).encode()]

    def restore(self) -> None:
        with self._redis.pipeline() as transaction:
            transaction.flushall()
            for key, value in self._kept.items():
                transaction.restore(key, 0, value)
            transaction.execute()

    def check(self) -> None:
        """Whatever is wrong elsewhere, within a moment everything answers."""
        deadline = time.monotonic() + PATIENCE_S
        while self._faults():
            assert time.monotonic() < deadline, self._faults()
            with suppress(ResponseError):  # as a living worker does every few seconds
                self._story.publish(OTHER, worker="w2")
            time.sleep(0.05)

    def _faults(self) -> list[str]:
        """What is not as it should be; a 500 is never tolerated."""
        api, answers = self._api, dict[str, httpx.Response]()
        answers["health"] = api.get("/healthz")
        answers["metrics"] = api.get("/metrics")
        answers["models"] = api.get("/v1/models")
        answers["ready"] = api.get("/readyz")
        answers["list"] = api.get("/v1/jobs")
        answers["job"] = api.get(f"/v1/jobs/{self.running}")
        answers["post"] = api.post("/v1/jobs", json={"prompt": "lava"})
        answers["spoilt"] = api.get(f"/v1/jobs/{self.spoilt}")
        answers["webhook"] = api.get("/v1/webhook")
        answers["deliveries"] = api.get(f"/v1/jobs/{self.spoilt}/deliveries")
        answers["tile"] = api.get(f"/v1/jobs/{self.spoilt}/tiles/0/0_0")
        assert all(answer.status_code != 500 for answer in answers.values()), answers
        expected = {"post": (202,), "webhook": (200, 404)} | dict.fromkeys(
            ("spoilt", "tile", "deliveries"), (200, 404, 410)
        )
        faults = [
            name for name, answer in answers.items() if answer.status_code not in expected.get(name, (200,))
        ]
        if answers["list"].is_success and self.running not in answers["list"].text:
            faults.append("not listed")
        if answers["job"].is_success and answers["job"].json()["children"] != [CHILD]:
            faults.append("children")
        return faults


@pytest.fixture
def settings(settings: ServiceSettings) -> ServiceSettings:
    return settings.model_copy(update={"reconcile_interval_s": 0.05})


@pytest.mark.parametrize("poison", [spoil, change_type])
def test_whatever_key_holds_garbage_all_else_works(
    api: httpx.Client, redis: Redis, story: Story, poison: Poison
) -> None:
    scene = Scene(api, redis, story)
    keys = scene.list_keys()
    assert len(keys) > 12, keys
    for key in keys:
        poison(redis, key)
        scene.check()
        scene.restore()
    metrics = api.get("/metrics").text
    assert "chorale_records_unreadable_total{kind=" in metrics


def test_a_job_that_cannot_be_read_is_gone_and_said_so_once(
    api: httpx.Client, redis: Redis, story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = api.post("/v1/jobs", json={"prompt": "secret words"}).json()["id"]
    body = json.loads(redis.hget(job_key(job_id), "job"))
    redis.hset(job_key(job_id), mapping={"job": json.dumps(body | {"cost": "much"}), "version": "7"})
    for path in ("", "/image", "/image.dzi", "/events", "/tiles/0/0_0"):
        answer = api.get(f"/v1/jobs/{job_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (410, "record_unreadable"), path
        assert "stored record unreadable" in answer.json()["detail"]
    assert api.post(f"/v1/jobs/{job_id}/cancel").status_code == 410
    assert api.get("/v1/jobs").json() == {"data": [], "next": None}
    said = [record for record in caplog.records if record.name == "service.unreadable"]
    (line,) = [record.getMessage() for record in said if job_id in record.getMessage()]
    assert "cost: Input should be" in line
    assert "stored as version b'7'; this one reads 1" in line
    assert "secret words" not in line
    assert 'chorale_records_unreadable_total{kind="job"} 1.0' in api.get("/metrics").text


def test_a_damaged_list_of_children_refuses_no_child(api: httpx.Client, redis: Redis, story: Story) -> None:
    """Nor is a child made that the answer denies."""
    parent = "8" * 28
    story.queue(parent)
    story.start(parent)
    story.succeed(parent, RESULT)
    redis.sadd(children_key(parent), "lost")
    change_type(redis, children_key(parent).encode())
    answer = api.post(f"/v1/jobs/{parent}/variations", json={"count": 2})
    assert answer.status_code == 202, answer.text
    made = {job["id"] for job in answer.json()["data"]}
    deadline = time.monotonic() + PATIENCE_S
    while set(api.get(f"/v1/jobs/{parent}").json()["children"]) != made:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_record_of_another_job_is_unreadable(api: httpx.Client, redis: Redis, story: Story) -> None:
    one, other = (api.post("/v1/jobs", json={"prompt": "lava"}).json()["id"] for _ in range(2))
    redis.hset(job_key(one), "job", redis.hget(job_key(other), "job"))
    for answer in (api.get(f"/v1/jobs/{one}"), api.post(f"/v1/jobs/{one}/cancel")):
        assert (answer.status_code, answer.json()["code"]) == (410, "record_unreadable")


def test_a_job_that_another_version_can_read_is_kept_in_the_queue(
    api: httpx.Client, redis: Redis, story: Story
) -> None:
    """Nothing of it is deleted, and after an upgrade it goes on."""
    job_id = api.post("/v1/jobs", json={"prompt": "lava"}).json()["id"]
    readable = redis.hget(job_key(job_id), "job")
    redis.hset(job_key(job_id), "job", NO_TEXT)
    redis.delete(f"rq:job:{job_id}", f"rq:queue:{queue_name('glow')}")  # a worker has passed over it
    time.sleep(0.5)
    redis.hset(job_key(job_id), "job", readable)
    queue = Queue(queue_name("glow"), connection=redis, serializer="json")
    deadline = time.monotonic() + PATIENCE_S
    while queue.get_job_ids() != [job_id]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("poisoned", ["first", "middle", "last"])
def test_followers_get_all_events_but_the_one_that_cannot_be_read(
    api: httpx.Client, redis: Redis, story: Story, poisoned: str
) -> None:
    job_id = "5" * 28
    story.queue(job_id)
    story.start(job_id)
    story.step(job_id, 1)
    story.fail(job_id)
    rows = redis.xrange(events_key(job_id))
    bad = {"first": 0, "middle": 2, "last": 3}[poisoned]
    redis.delete(events_key(job_id))
    for number, (seq, fields) in enumerate(rows):
        redis.xadd(events_key(job_id), {"event": NO_TEXT} if number == bad else fields, id=seq)
    wanted = {
        "first": ["snapshot", "job.failed"],
        "middle": ["job.queued", "job.started", "job.failed"],
        "last": ["job.queued", "job.started", "step.completed", "job.failed"],
    }[poisoned]
    with httpx.stream("GET", f"{api.base_url}/v1/jobs/{job_id}/events", timeout=PATIENCE_S) as stream:
        received = [
            line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")
        ]
    assert received == wanted
    with connect(f"{str(api.base_url).replace('http', 'ws')}/v1/jobs/{job_id}/ws") as socket:
        assert [json.loads(message)["type"] for message in socket] == received


def test_an_idempotency_key_with_garbage_may_be_used_again(
    api: httpx.Client, redis: Redis, story: Story
) -> None:
    headers = {"Idempotency-Key": "mine"}
    jobs = {api.post("/v1/jobs", json={"prompt": "lava"}, headers=headers).json()["id"]}
    (key,) = redis.keys("chorale:idempotency:*")
    for poison in (spoil, change_type):
        poison(redis, key)
        for _ in range(2):
            jobs.add(api.post("/v1/jobs", json={"prompt": "lava"}, headers=headers).json()["id"])
    assert len(jobs) == 3


def test_previews_with_garbage_among_them_show_the_rest(
    api: httpx.Client, redis: Redis, story: Story
) -> None:
    job_id = "6" * 28
    story.queue(job_id, width_px=1024, height_px=512)
    story.start(job_id)
    frame = story.preview(job_id, 0, 0, level=200)
    redis.hset(previews_key(job_id), mapping={NO_TEXT: frame, "512,0": NO_TEXT, "0,512": frame[:-900]})
    assert api.get(f"/v1/jobs/{job_id}/tiles/0/0_0").status_code == 200
    with connect(f"{str(api.base_url).replace('http', 'ws')}/v1/jobs/{job_id}/ws") as socket:
        assert frame in socket.recv(timeout=PATIENCE_S)


def test_all_jobs_are_listed_again_after_their_list_was_lost(
    api: httpx.Client, redis: Redis, story: Story
) -> None:
    jobs = [api.post("/v1/jobs", json={"prompt": "lava"}).json()["id"] for _ in range(3)]
    for key in ("chorale:jobs", "chorale:active"):
        change_type(redis, key.encode())
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = api.get("/v1/jobs")
        if answer.is_success and [job["id"] for job in answer.json()["data"]] == jobs[::-1]:
            break
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    assert redis.smembers("chorale:active") == {job.encode() for job in jobs}
    assert redis.keys("chorale:unreadable:*") == []
