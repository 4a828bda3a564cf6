"""Jobs with webhooks, and what the API tells of their deliveries."""

import httpx
from redis import Redis

from api_schemas.webhook import DUE_KEY
from tests.service.webhooks.receiver import (
    SECRET,
    eventually,
)


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
