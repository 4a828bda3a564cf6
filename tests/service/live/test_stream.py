"""What one client is sent."""

import asyncio

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from service.event_stream import EventStream
from service.job_store import JobStore
from service.live.hub import LiveHub
from service.messages import Idle, Message
from service.metrics import Metrics
from service.throughput import Throughput
from service.unreadable import UnreadableRecords
from tests.story import Story

JOB = "1" * 28


def test_after_an_outage_a_reader_gets_a_sign_of_life_at_once(valkey: str, redis: Redis) -> None:
    """Outages that come one after another would keep it waiting for ever, if each began its time again."""

    async def read() -> Message:
        async with AsyncRedis.from_url(valkey) as client:
            metrics = Metrics()
            unreadable = UnreadableRecords(metrics)
            jobs, hub = JobStore(client, unreadable), LiveHub(client, metrics, Throughput(), unreadable)
            job = await jobs.get(JOB)
            assert job is not None
            stream = EventStream(client, hub, jobs, ping_interval_s=3600)
            messages = stream.follow(job, job.seq, previews=False, holder=("", ""))
            task = asyncio.create_task(hub.run())  # it finds the end of the stream, as after an outage
            async with asyncio.timeout(20):
                message = await anext(messages)
            await messages.aclose()
            task.cancel()
            return message

    Story(redis).queue(JOB)
    assert isinstance(asyncio.run(read()), Idle)
