"""What a command says of a job that waits, by what the API knows."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import httpx
import pytest
from redis import Redis
from rich.console import Console

from api_schemas.generation import GenerationRequest
from api_schemas.wire import WORKER_KEY_PREFIX
from chorale.client import Client
from chorale.follow import telling_why_it_waits
from chorale.protocol import Preview, Update
from service.settings import ServiceSettings
from tests.service.conftest import serve
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
        with telling_why_it_waits(Console(file=said), client, job, look_s=0.01):
            while "\n" not in said.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
    assert said.getvalue() == f"the job waits: {says}\n"


@pytest.mark.usefixtures("story")
@pytest.mark.parametrize(("first", "says"), [(0, "its turn is next"), (1, "jobs before it: 1")])
def test_what_is_before_a_job_is_told(api: httpx.Client, url: str, first: int, says: str) -> None:
    ids = [api.post("/v1/jobs", json={"prompt": "moss"}).json()["id"] for _ in range(2)]
    said, deadline = StringIO(), time.monotonic() + 30
    with (
        Client(url) as client,
        telling_why_it_waits(Console(file=said), client, client.get(ids[first]), look_s=0.01),
    ):
        while "\n" not in said.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
    assert said.getvalue() == f"the job waits: {says}\n"


@pytest.mark.parametrize("follow", [Client.live, Client.events])
def test_a_server_that_starts_again_is_followed_on(
    settings: ServiceSettings,
    story: Story,
    follow: Callable[[Client, str], Iterator[Update | Preview]],
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serve(settings) as url:
            client = Client(url)
            job_id = client.create(GenerationRequest(prompt="moss")).id
            updates = follow(client, job_id)
            kinds = [next(updates).type]
            rest = pool.submit(lambda: [each.type for each in updates if not isinstance(each, Preview)])
        story.start(job_id)
        time.sleep(0.5)  # nobody answers meanwhile
        with serve(settings, port=int(url.rpartition(":")[2])):
            story.cancel(job_id)
            kinds += rest.result(timeout=60)
    client.close()
    assert (kinds[0], kinds[-1]) == ("job.queued", "job.canceled")
