"""Deliveries as a receiver sees them, which verifies each by the library of Standard Webhooks."""

import time

import httpx
import pytest
from redis import Redis
from standardwebhooks.webhooks import WebhookVerificationError

from api_schemas.answers import JobView
from api_schemas.webhook import DUE_KEY
from tests.service.webhooks.delivery.asking import await_status, end, hasten, list_deliveries, post
from tests.service.webhooks.receiver import (
    OTHER_SECRET,
    SECRET,
    Call,
    DeliveryProcess,
    Receiver,
    eventually,
)
from tests.story import Story


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
