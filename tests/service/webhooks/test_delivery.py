"""Deliveries as a receiver sees them, which verifies each by the library of Standard Webhooks."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api_schemas.answers import JobView
from api_schemas.webhook import DUE_KEY, deliveries_key
from service.settings import ServiceSettings
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
        process.kill()


@pytest.fixture
def receiver(process: DeliveryProcess) -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


@pytest.fixture
def settings(settings: ServiceSettings) -> ServiceSettings:
    return ServiceSettings.model_validate(dict(settings) | {"webhook_networks": "127.0.0.0/8"})


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
