"""The durable log of a job, as one client reads it."""

import asyncio
import tracemalloc
from contextlib import ExitStack

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from service.job_store import JobStore
from service.live.log import JobLog
from service.metrics import Metrics
from service.unreadable import UnreadableRecords
from tests.story import Story

JOB = "1" * 28
CLIENTS = 20
EVENTS = 600
# 100 stalled clients may hold 64 MB, and each has its buffer beside this.
MOST_BYTES = 128 << 10


def test_a_client_that_stops_reading_holds_little_of_a_long_log(valkey: str, redis: Redis) -> None:
    async def read() -> list[str]:
        async with AsyncRedis.from_url(valkey) as client:
            jobs = JobStore(client, UnreadableRecords(Metrics()))
            job = await jobs.get(JOB)
            assert job is not None
            replays = [JobLog(client, jobs, job, None).replay() for _ in range(CLIENTS)]
            first = await anext(replays[0])
            with ExitStack() as stack:
                tracemalloc.start()
                stack.callback(tracemalloc.stop)
                for replay in replays[1:]:
                    await anext(replay)
                held, _ = tracemalloc.get_traced_memory()
            assert held / (CLIENTS - 1) < MOST_BYTES
            return [first.seq] + [message.seq async for message in replays[0]]

    story = Story(redis)
    story.queue(JOB)
    story.start(JOB)
    for step in range(1, EVENTS - 1):
        story.step(JOB, step, steps=EVENTS)
    assert asyncio.run(read()) == [event.seq for event in story.log(JOB)]
