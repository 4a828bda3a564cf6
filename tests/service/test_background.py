"""Tasks beside the requests: one that fails is started again, is told of, and takes no other with it."""

import asyncio
import json
from collections import Counter

import httpx
from redis import Redis
from websockets.sync.client import connect

from api_schemas.wire import LIVE_KEY
from service.background import Background
from service.metrics import Metrics
from tests.story import Story

JOB = "4" * 28


def test_each_task_is_started_again_by_itself() -> None:
    starts: Counter[str] = Counter()
    again = asyncio.Event()

    async def steady() -> None:
        starts["steady"] += 1
        await asyncio.Event().wait()

    async def failing() -> None:
        starts["failing"] += 1
        if starts["failing"] == 2:
            again.set()
        raise LookupError("/a/path")

    async def ending() -> None:
        starts["ending"] += 1

    async def test() -> None:
        tasks = {"steady": steady, "failing": failing, "ending": ending}
        background = Background(metrics, tasks)
        assert background.list_troubles() == {}
        running = asyncio.create_task(background.run())
        await again.wait()
        troubles = background.list_troubles()
        assert (set(troubles), troubles["ending"]) == ({"failing", "ending"}, "ended")
        assert starts["ending"] >= 1
        assert "LookupError" in troubles["failing"]
        assert "/a/path" not in troubles["failing"]  # the log's business
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    metrics = Metrics()
    asyncio.run(asyncio.wait_for(test(), 20))
    assert starts["steady"] == 1
    text = metrics.render().decode()
    assert 'chorale_background_restarts_total{task="failing"} 1.0' in text
    assert 'chorale_background_restarts_total{task="steady"} 0.0' in text
    assert 'chorale_background_up{task="ending"} 0.0' in text
    assert 'chorale_background_up{task="steady"} 1.0' in text


def test_a_live_entry_that_cannot_be_read_costs_followers_nothing(
    api: httpx.Client, story: Story, redis: Redis
) -> None:
    story.queue(JOB)
    with connect(str(api.base_url).replace("http", "ws").rstrip("/") + f"/v1/jobs/{JOB}/ws") as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"
        redis.xadd(LIVE_KEY, {"job": JOB, "of": "another version"})
        story.start(JOB)
        assert json.loads(socket.recv(timeout=30))["type"] == "job.started"
        story.step(JOB, 1)
        assert json.loads(socket.recv(timeout=30))["type"] == "step.completed"
