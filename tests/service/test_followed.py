"""What a command says of a job that waits, by what the API knows."""

import time
from io import StringIO

import httpx
import pytest
from redis import Redis
from rich.console import Console

from api_schemas.wire import WORKER_KEY_PREFIX
from chorale.client import Client
from chorale.follow import telling_why_it_waits
from tests.story import CARD, Story


@pytest.mark.parametrize(
    ("another", "says"),
    [(False, "no worker is connected"), (True, "no worker for model glow is connected")],
)
def test_a_job_that_nobody_takes_is_told_once(
    api: httpx.Client, url: str, story: Story, redis: Redis, another: bool, says: str
) -> None:
    job_id = api.post("/v1/jobs", json={"prompt": "moss"}).json()["id"]
    redis.delete(f"{WORKER_KEY_PREFIX}w1")
    if another:
        story.publish(CARD.model_copy(update={"name": "ember", "is_default": False}), worker="w2")
    said, deadline = StringIO(), time.monotonic() + 30
    with Client(url) as client:
        job = client.get(job_id)
        with telling_why_it_waits(Console(file=said), client, job, quiet_s=0.0):
            while "\n" not in said.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
    assert said.getvalue() == f"the job waits: {says}\n"
