"""The one reader of the live stream: each subscription gets what is its job's, in order, or is told that it did not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.preview_frames import unpack_batch
from api_schemas.wire import LIVE_KEY
from service.live.hub import MAX_BATCH_BYTES, LiveHub, join_frames
from service.live.subscription import MAX_EVENTS, MAX_PREVIEW_BYTES, Subscription
from service.messages import EventMessage
from service.metrics import Metrics
from service.throughput import Throughput
from service.unreadable import UnreadableRecords
from tests.story import Story

JOB, OTHER = "1" * 28, "2" * 28
PATIENCE_S = 20.0


@asynccontextmanager
async def reading(valkey: str, metrics: Metrics | None = None) -> AsyncIterator[LiveHub]:
    """A hub that reads until the end of the block."""
    async with AsyncRedis.from_url(valkey) as client:
        metrics = metrics or Metrics()
        hub = LiveHub(client, metrics, Throughput(), UnreadableRecords(metrics))
        task = asyncio.create_task(hub.run())
        try:
            with hub.subscribe("", previews=False) as probe:
                assert (await probe.take(PATIENCE_S)).behind  # it has found the end of the stream
            yield hub
        finally:
            task.cancel()


async def take_events(subscription: Subscription, count: int) -> list[EventMessage]:
    events: list[EventMessage] = []
    while len(events) < count:
        delivery = await subscription.take(PATIENCE_S)
        assert delivery.events
        assert not delivery.behind
        events += delivery.events
    return events


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await test()

    asyncio.run(bounded())


def test_each_subscription_gets_its_job_s_events_in_order_and_no_others(valkey: str, redis: Redis) -> None:
    async def test() -> None:
        async with reading(valkey) as hub:
            with (
                hub.subscribe(JOB, previews=True) as mine,
                hub.subscribe(JOB, previews=False) as twin,
                hub.subscribe(OTHER, previews=True) as other,
            ):
                await asyncio.to_thread(tell_both, story)
                for subscription, job_id in ((mine, JOB), (twin, JOB), (other, OTHER)):
                    log = story.log(job_id)
                    events = await take_events(subscription, len(log))
                    assert [event.seq for event in events] == [event.seq for event in log]
                    assert [event.previous for event in events] == ["", *(event.seq for event in log[:-1])]

    story = Story(redis)
    run(test)


def tell_both(story: Story) -> None:
    for job_id in (JOB, OTHER):
        story.queue(job_id)
        story.start(job_id)
    for step in range(1, 30):
        for job_id in (JOB, OTHER)[: 1 + step % 2]:
            story.step(job_id, step)


def test_previews_go_byte_for_byte_to_those_who_want_them(valkey: str, redis: Redis) -> None:
    async def test() -> None:
        async with reading(valkey) as hub:
            with hub.subscribe(JOB, previews=True) as eager, hub.subscribe(JOB, previews=False) as plain:
                sent = [story.preview(JOB, 512 * column, 0, level=column) for column in range(9)]
                story.preview(OTHER, 0, 0, level=1)
                story.queue(JOB)
                received: list[bytes] = []
                while len(received) < len(sent):
                    for batch in (await eager.take(PATIENCE_S)).previews:
                        received += unpack_batch(batch)
                assert received == sent
                delivery = await plain.take(PATIENCE_S)
                assert (len(delivery.events), delivery.previews) == (1, [])

    story = Story(redis)
    run(test)


def test_who_takes_nothing_is_told_what_was_dropped_and_holds_little(valkey: str, redis: Redis) -> None:
    async def test() -> None:
        async with reading(valkey) as hub:
            with hub.subscribe(JOB, previews=True) as stalled, hub.subscribe(JOB, previews=False) as last:
                with redis.pipeline() as pipeline:
                    for number in range(MAX_EVENTS + 1):
                        entry = {"job": JOB, "seq": f"{number + 1}-0", "prev": f"{number}-0", "event": event}
                        pipeline.xadd(LIVE_KEY, entry)
                        if number % 50 == 0:
                            pipeline.xadd(LIVE_KEY, {"job": JOB, "frame": b"x" * (MAX_PREVIEW_BYTES // 10)})
                    pipeline.execute()
                while not (await last.take(PATIENCE_S)).behind:
                    pass
                delivery = await stalled.take(PATIENCE_S)
                assert (delivery.behind, delivery.stale) == (True, True)
                assert (delivery.events, delivery.previews) == ([], [])

    story = Story(redis)
    story.queue(JOB)
    story.start(JOB)
    story.step(JOB, 1)
    event = story.log(JOB)[-1].model_dump_json()
    run(test)


def test_a_lost_connection_loses_no_event_in_silence(valkey: str, redis: Redis) -> None:
    async def test() -> None:
        async with reading(valkey) as hub:
            with hub.subscribe(JOB, previews=False) as subscription:
                for step in range(1, 4):
                    redis.client_kill_filter(_type="normal", skipme=True)
                    story.step(JOB, step)
                    delivery = await subscription.take(PATIENCE_S)
                    newest = [event.seq for event in delivery.events][-1:]
                    assert delivery.behind or newest == [story.job(JOB).seq]

    story = Story(redis)
    story.queue(JOB)
    story.start(JOB)
    run(test)


def test_closing_ends_all_subscriptions_and_those_that_come_later(valkey: str) -> None:
    async def test() -> None:
        metrics = Metrics()
        async with reading(valkey, metrics) as hub:
            with hub.subscribe(JOB, previews=True) as early:
                hub.close()
                assert (await early.take(PATIENCE_S)).closed
                with hub.subscribe(OTHER, previews=True) as late:
                    assert (await late.take(PATIENCE_S)).closed
                    assert metrics.registry.get_sample_value("chorale_live_readers") == 2
        assert metrics.registry.get_sample_value("chorale_live_readers") == 0

    run(test)


@given(st.lists(st.sampled_from((1, 1000, MAX_BATCH_BYTES // 3, MAX_BATCH_BYTES, MAX_BATCH_BYTES + 1))))
def test_joined_frames_are_the_frames_in_messages_of_bounded_size(sizes: list[int]) -> None:
    frames = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    batches = [unpack_batch(message) for message in join_frames(frames)]
    assert [frame for batch in batches for frame in batch] == frames
    assert all(len(batch) == 1 or sum(map(len, batch)) <= MAX_BATCH_BYTES for batch in batches)
