"""Deliveries as a receiver sees them, which verifies each by the library of Standard Webhooks."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis
from rq import Queue
from standardwebhooks.webhooks import WebhookVerificationError

from api_schemas.answers import JobView
from api_schemas.events import CanceledData, JobCanceled
from api_schemas.job import apply
from api_schemas.webhook import DUE_KEY, WEBHOOK_WORKERS_KEY, WEBHOOKS_QUEUE, deliveries_key, webhook_key
from api_schemas.wire import ACTIVE_KEY, APPEND_EVENT, append_event
from chorale.data_folder import DataFolder
from chorale.doctor import examine
from service.settings import ServiceSettings
from tests.poison import NO_TEXT
from tests.service.conftest import serve
from tests.service.webhooks.receiver import (
    OTHER_SECRET,
    SECRET,
    Call,
    DeliveryProcess,
    Receiver,
    eventually,
    receive,
)
from tests.story import Story


@pytest.fixture(scope="module")
def process(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliveryProcess]:
    """One for all tests; each begins with an empty server."""
    log = tmp_path_factory.mktemp("webhooks") / "log"
    settings = {"CHORALE_WEBHOOK_NETWORKS": "127.0.0.0/8", "CHORALE_WEBHOOK_TIMEOUT_S": "1.5"}
    process = DeliveryProcess(valkey, str(log), **settings)
    try:
        yield process
    finally:
        process.process.terminate()
        assert process.process.wait(20) == 0


@pytest.fixture
def receiver(process: DeliveryProcess) -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def api(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "store").mkdir()
    given = {
        "store_url": (folder / "store").as_uri(),
        "work_dir": folder / "work",
        "reconcile_interval_s": 0.2,
    }
    settings = ServiceSettings.model_validate(
        given | {"redis_url": valkey, "webhook_networks": "127.0.0.0/8"}
    )
    with serve(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def post(api: httpx.Client, **webhook: object) -> str:
    """A job with a webhook of its own."""
    answer = api.post("/v1/jobs", json={"prompt": "lava", "webhook": {"secret": SECRET} | webhook})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def end(api: httpx.Client, job_id: str) -> None:
    assert api.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "canceled"


def list_deliveries(api: httpx.Client, job_id: str) -> list[dict[str, object]]:
    return api.get(f"/v1/jobs/{job_id}/deliveries").json()["data"]


def await_status(api: httpx.Client, job_id: str, *statuses: str) -> list[dict[str, object]]:
    def find() -> list[dict[str, object]] | None:
        found = list_deliveries(api, job_id)
        return found if tuple(each["status"] for each in found) == statuses else None

    return eventually(find)


def hasten(redis: Redis) -> None:
    """As if the time of what waits had come."""
    for member in redis.zrange(DUE_KEY, 0, -1):
        redis.zadd(DUE_KEY, {member: 0})


def test_the_end_of_a_job_is_told_once_and_signed(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis
) -> None:
    job_id = post(api, url=receiver.say("/hook", 204))
    assert list_deliveries(api, job_id) == []
    story.start(job_id)
    story.fail(job_id)
    (call,) = receiver.wait("/hook")
    told = call.verify()
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (told["type"], told["timestamp"][:19]) == (
        "job.failed",
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(job["finished_at"])),
    )
    assert told["data"]["error"] == job["error"]
    assert JobView.model_validate(told["data"]).request == JobView.model_validate(job).request
    assert told["data"]["urls"]["result"] == job["urls"]["result"]
    (delivery,) = await_status(api, job_id, "delivered")
    assert (delivery["id"], delivery["event"], delivery["endpoint"]) == (call.id, "job.failed", "job")
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [204]
    assert not redis.exists(DUE_KEY)


def test_no_other_message_verifies(api: httpx.Client, story: Story, receiver: Receiver) -> None:
    """Not one that was changed, signed with another secret, renamed, or sent again later."""
    end(api, post(api, url=receiver.say("/hook", 204)))
    (call,) = receiver.wait("/hook")
    call.verify()
    later = str(int(call.headers["webhook-timestamp"]) - 301)
    forged = [
        Call(call.path, call.headers, call.body.replace(b"canceled", b"succeeded")),
        Call(call.path, call.headers | {"webhook-id": "msg_other"}, call.body),
        Call(call.path, call.headers | {"webhook-timestamp": later}, call.body),
    ]
    for each in forged:
        with pytest.raises(WebhookVerificationError):
            each.verify()
    with pytest.raises(WebhookVerificationError):
        call.verify(OTHER_SECRET)


def test_an_api_key_has_a_webhook_for_all_its_jobs_and_changes_its_secret_without_a_gap(
    api: httpx.Client, story: Story, receiver: Receiver
) -> None:
    assert api.get("/v1/webhook").status_code == 404
    drawn = api.put("/v1/webhook", json={"url": receiver.say("/key", 204)}).json()["secret"]
    shown = api.get("/v1/webhook").json()
    assert (shown["secret"], shown["num_secrets"], shown["disabled"]) == (None, 1, False)
    end(api, api.post("/v1/jobs", json={}).json()["id"])
    (first,) = receiver.wait("/key")
    first.verify(drawn)
    both = {"url": receiver.say("/key", 204), "secret": OTHER_SECRET, "former_secrets": [drawn]}
    assert api.put("/v1/webhook", json=both).json()["num_secrets"] == 2
    job_id = post(api, url=receiver.say("/job", 204), secret=None)  # signed as those of the key
    end(api, job_id)
    _, second = receiver.wait("/key", 2)
    for call in (second, *receiver.wait("/job")):
        call.verify(drawn)
        call.verify(OTHER_SECRET)
    assert [each["endpoint"] for each in await_status(api, job_id, "delivered", "delivered")] == [
        "job",
        "key",
    ]
    assert api.delete("/v1/webhook").status_code == 204
    end(api, api.post("/v1/jobs", json={}).json()["id"])
    assert api.get("/v1/webhook").status_code == 404
    assert len(receiver.find("/key")) == 2
    delivered = list_deliveries(api, job_id)
    again = api.post(f"/v1/jobs/{job_id}/deliveries/{delivered[1]['id']}/redeliver")
    assert (again.status_code, "was removed" in again.json()["detail"]) == (404, True)
    assert list_deliveries(api, job_id) == delivered


def test_what_waits_for_a_webhook_that_is_removed_goes_to_none_that_comes_after_it(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis
) -> None:
    api.put("/v1/webhook", json={"url": receiver.say("/old", 500), "secret": SECRET})
    job_id = api.post("/v1/jobs", json={}).json()["id"]
    end(api, job_id)
    receiver.wait("/old")
    eventually(lambda: [each for each in list_deliveries(api, job_id) if each["attempts"]])
    assert api.delete("/v1/webhook").status_code == 204
    api.put("/v1/webhook", json={"url": receiver.say("/new", 204), "secret": OTHER_SECRET})
    hasten(redis)
    (delivery,) = await_status(api, job_id, "disabled")
    assert len(delivery["attempts"]) == 1
    end(api, api.post("/v1/jobs", json={}).json()["id"])
    assert len(receiver.wait("/new")) == 1
    assert api.delete("/v1/webhook").status_code == 204


def test_only_what_was_asked_for_is_told_and_of_each_moment_its_state(
    api: httpx.Client, story: Story, receiver: Receiver
) -> None:
    both = post(api, url=receiver.say("/both", 204), events=["job.started", "job.failed"])
    end_only = post(api, url=receiver.say("/ends", 204))
    neither = post(api, url=receiver.say("/neither", 204), events=["job.succeeded"])
    for job_id in (both, end_only, neither):
        story.start(job_id)
        story.step(job_id, 1)
        story.fail(job_id)  # before the start can have been told
    told = {call.verify()["type"]: call.verify()["data"] for call in receiver.wait("/both", 2)}
    assert told["job.started"]["status"] == "processing"
    assert told["job.started"]["error"] is told["job.started"]["finished_at"] is None
    assert told["job.failed"]["status"] == "failed"
    assert [call.verify()["type"] for call in receiver.wait("/ends")] == ["job.failed"]
    assert list_deliveries(api, neither) == receiver.find("/neither") == []


def test_secrets_are_shown_nowhere(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis, process: DeliveryProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    job_id = post(api, url=receiver.say("/hook?token=hidden", 500, 204), former_secrets=[OTHER_SECRET])
    end(api, job_id)
    eventually(lambda: [each for each in list_deliveries(api, job_id) if each["attempts"]])
    shown = [api.get(f"/v1/jobs/{job_id}{path}").text for path in ("", "/events", "/deliveries")] + [
        api.get("/v1/jobs").text,
        api.get("/metrics").text,
        process.read_log(),
        caplog.text,
    ]
    shown += [str(redis.hgetall(f"chorale:job:{job_id}")), str(redis.xrange(f"chorale:events:{job_id}"))]
    for text in shown:
        for secret in (SECRET, OTHER_SECRET, "token=hidden"):
            assert secret.removeprefix("whsec_") not in text
    wrong = {"url": "https://a.example", "secret": SECRET[:-8], "former_secrets": [SECRET], "size": SECRET}
    for body in ({"webhook": wrong}, {"strength": 1.0, "webhook": wrong | {"url": 1}}, {"webhook": [wrong]}):
        answer = api.post("/v1/jobs", json=body)
        assert answer.status_code == 422
        assert SECRET[6:20] not in answer.text
    assert SECRET[6:20] not in api.put("/v1/webhook", json=wrong).text
    strange = api.post(f"/v1/jobs/{job_id}/extend", json={"webhook": wrong})
    assert SECRET[6:20] not in strange.text


def test_what_fails_is_tried_again_with_the_same_id_and_body(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis
) -> None:
    receiver.location = receiver.url + "/elsewhere"
    job_id = post(api, url=receiver.say("/hook", 500, 302, 204))
    end(api, job_id)
    for tries, (first_s, last_s), error in (
        (1, (5, 5.5), "answered 500"),
        (2, (300, 330), "answered 302: redirects are not followed"),
    ):
        (delivery,) = eventually(
            lambda tries=tries: [
                each for each in list_deliveries(api, job_id) if len(each["attempts"]) == tries
            ]
        )
        last = delivery["attempts"][-1]
        assert (delivery["status"], last["error"]) == ("waiting", error)
        ended_at = last["at"] + last["duration_s"]
        assert first_s - 0.1 <= delivery["next_attempt_at"] - ended_at <= last_s + 1
        hasten(redis)
    await_status(api, job_id, "delivered")
    calls = receiver.wait("/hook", 3)
    assert len({(call.id, call.body) for call in calls}) == 1
    assert receiver.find("/elsewhere") == []
    for call in calls:
        call.verify()


def test_after_the_last_attempt_it_is_given_up_and_sent_again_when_asked(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis
) -> None:
    job_id = post(api, url=receiver.say("/hook", 500, 500, 204))
    end(api, job_id)
    first, *_ = receiver.wait("/hook")
    (name,) = eventually(lambda: redis.hkeys(deliveries_key(job_id)))
    record = json.loads(redis.hget(deliveries_key(job_id), name)) | {"tries": 6}
    redis.hset(deliveries_key(job_id), name, json.dumps(record))
    hasten(redis)
    (delivery,) = await_status(api, job_id, "failed")
    again = api.post(f"/v1/jobs/{job_id}/deliveries/{delivery['id']}/redeliver")
    assert (again.status_code, again.json()["status"]) == (202, "waiting")
    await_status(api, job_id, "delivered")
    assert {call.id for call in receiver.find("/hook")} == {first.id} == {delivery["id"]}
    for unknown in ("msg_other", "../x"):
        assert api.post(f"/v1/jobs/{job_id}/deliveries/{unknown}/redeliver").status_code == 404
    assert 'chorale_webhook_attempts_total{outcome="given_up"} 1.0' in api.get("/metrics").text
    assert 'chorale_webhook_attempts_total{outcome="delivered"} 1.0' in api.get("/metrics").text


def test_a_stored_secret_that_is_damaged_fails_as_others_do(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis
) -> None:
    job_id = post(api, url=receiver.say("/hook", 204))
    redis.hset(webhook_key("job", job_id), "secrets", "whsec_")
    end(api, job_id)
    (delivery,) = eventually(lambda: [each for each in list_deliveries(api, job_id) if each["attempts"]])
    assert delivery["status"] == "waiting"
    assert delivery["attempts"][0]["error"] == "an error of the service; its log says why"
    assert receiver.calls == []


def test_410_disables_until_it_is_set_again(api: httpx.Client, story: Story, receiver: Receiver) -> None:
    body = {"url": receiver.say("/key", 410, 204), "secret": SECRET}
    api.put("/v1/webhook", json=body)
    first, second = (api.post("/v1/jobs", json={}).json()["id"] for _ in range(2))
    end(api, first)
    await_status(api, first, "disabled")
    assert api.get("/v1/webhook").json()["disabled"]
    end(api, second)
    assert list_deliveries(api, second) == []
    api.put("/v1/webhook", json=body)
    third = api.post("/v1/jobs", json={}).json()["id"]
    end(api, third)
    await_status(api, third, "delivered")
    assert len(receiver.find("/key")) == 2


def test_endpoints_that_hang_delay_no_others(api: httpx.Client, story: Story, receiver: Receiver) -> None:
    with receive() as other:
        hanging = [post(api, url=other.say("/hang", 0)) for _ in range(12)]
        for job_id in hanging:
            end(api, job_id)
        other.wait("/hang", 8)
        began = time.time()
        job_id = post(api, url=receiver.say("/hook", 204))
        end(api, job_id)
        receiver.wait("/hook")
        (delivery,) = await_status(api, job_id, "delivered")
        waiting = [each for job_id in hanging for each in list_deliveries(api, job_id)]
        assert {each["status"] for each in waiting} == {"waiting"}
        assert delivery["attempts"][0]["at"] >= began
        other.let_go.set()


def test_an_idempotency_key_is_for_the_same_webhook(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis
) -> None:
    def send(secret: str) -> httpx.Response:
        body = {"webhook": {"url": receiver.say("/hook", 204), "secret": secret}}
        return api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "mine"})

    first, same, other = send(SECRET), send(SECRET), send(OTHER_SECRET)
    assert first.json()["id"] == same.json()["id"]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    for secret in (SECRET, OTHER_SECRET):
        assert not any(secret.encode() in redis.dump(key) for key in redis.keys("chorale:idempotency:*"))


def litter(redis: Redis, folder: Path) -> None:
    """Garbage in each list that the process reads, and a call of something else."""
    Queue(WEBHOOKS_QUEUE, connection=redis, serializer="json").enqueue("os.mkdir", str(folder))
    redis.lpush("rq:queue:webhooks", NO_TEXT, "../../etc", "")
    redis.lpush("rq:queue:webhooks:intermediate", NO_TEXT)
    redis.zadd("rq:wip:webhooks", {NO_TEXT: 1, "a:b:c": 2})
    redis.zadd(DUE_KEY, {NO_TEXT: 0, "a/b/c": 0})


def test_whoever_is_killed_each_is_delivered_with_one_id(
    api: httpx.Client,
    story: Story,
    receiver: Receiver,
    redis: Redis,
    process: DeliveryProcess,
    tmp_path: Path,
) -> None:
    """Before it is sent, and while it is: then the receiver gets it twice, which the id shows."""
    process.kill()
    redis.delete(WEBHOOK_WORKERS_KEY)  # as if its signs of life were old
    before, meanwhile = (
        post(api, url=receiver.say("/before", 204)),
        post(api, url=receiver.say("/hang", 0, 204)),
    )
    end(api, before)
    readiness = api.get("/readyz")
    (part,) = (part for part in readiness.json()["parts"] if part["name"] == "webhooks")
    assert (readiness.status_code, part["ready"]) == (200, False)
    assert "deliveries that wait: 1; nobody makes them: start `chorale webhooks`" in part["message"]
    with DataFolder(tmp_path).hold(str(api.base_url)):
        findings = list(examine(DataFolder(tmp_path), repair=False))
    assert [each.part for each in findings if part["message"] in each.text and not each.is_well] == [
        "webhooks"
    ]
    assert "chorale_webhooks_waiting 1.0" in api.get("/metrics").text
    litter(redis, tmp_path / "made")
    process.start()
    await_status(api, before, "delivered")
    assert not (tmp_path / "made").exists()
    end(api, meanwhile)
    receiver.wait("/hang")
    process.kill()
    hasten(redis)  # as if its lease had run out
    process.start()
    await_status(api, meanwhile, "delivered")
    assert len(receiver.find("/before")) == 1
    assert [call.id for call in receiver.find("/hang")] == [receiver.calls[-1].id] * 2
    assert not redis.exists(DUE_KEY)


def test_what_the_list_of_what_is_due_has_lost_is_delivered_all_the_same(
    api: httpx.Client, story: Story, receiver: Receiver, redis: Redis
) -> None:
    """It was damaged, or a worker of an older version, whose script does not write it, has ended the job."""
    for key in ("/older", "/damaged"):
        job_id = post(api, url=receiver.say(key, 204))
        job = story.job(job_id)
        event = JobCanceled(job_id=job_id, attempt=0, ts=time.time(), data=CanceledData(reason="by hand"))
        keys, arguments = append_event(apply(job, event), event, after=job.seq)
        with redis.pipeline(transaction=True) as moment:
            moment.eval(APPEND_EVENT, len(keys), *keys, *arguments)
            moment.delete(DUE_KEY)
            if key == "/damaged":
                moment.rpush(DUE_KEY, "1")
                moment.srem(ACTIVE_KEY, job_id)
            moment.execute()
        receiver.wait(key)
        await_status(api, job_id, "delivered")
