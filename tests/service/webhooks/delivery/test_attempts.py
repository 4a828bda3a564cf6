"""What becomes of a delivery that fails, hangs, is lost, or whose process is killed."""

import json
import time
from pathlib import Path

import httpx
from redis import Redis
from rq import Queue

from api_schemas.events import CanceledData, JobCanceled
from api_schemas.job import apply
from api_schemas.webhook import DUE_KEY, WEBHOOK_WORKERS_KEY, WEBHOOKS_QUEUE, deliveries_key, webhook_key
from api_schemas.wire import ACTIVE_KEY, APPEND_EVENT, append_event
from chorale.data_folder import DataFolder
from chorale.doctor import examine
from tests.poison import NO_TEXT
from tests.service.webhooks.delivery.asking import await_status, end, hasten, list_deliveries, post
from tests.service.webhooks.receiver import (
    SECRET,
    DeliveryProcess,
    Receiver,
    eventually,
    receive,
)
from tests.story import Story


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
