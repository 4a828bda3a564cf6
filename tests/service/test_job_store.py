"""The records of jobs: what was written is found, once and in order, and what was deleted leaves nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.catalog import Cost
from api_schemas.events import JobQueued, QueuedData
from api_schemas.generation import ResolvedRequest
from api_schemas.job import fold
from api_schemas.wire import JOBS_KEY, cancel_key
from service.job_store import JobStore, read_time
from service.jobs.intake import draw_job_id
from service.metrics import Metrics
from service.unreadable import UnreadableRecords
from tests.story import Story

Answer = TypeVar("Answer")
REQUEST = ResolvedRequest(model="glow", steps=12, guidance_scale=5.0, seed=7, prompt="lava")
_numbers = count()


def ask(valkey: str, call: Callable[[JobStore], Awaitable[Answer]]) -> Answer:
    """The answer of a store to one call."""

    async def do() -> Answer:
        async with AsyncRedis.from_url(valkey) as client:
            return await call(JobStore(client, UnreadableRecords(Metrics())))

    return asyncio.run(do())


def queued(job_id: str, ts: float = 1_700_000_000.25) -> JobQueued:
    cost = Cost(tiles=1, megapixel_steps=1.0, vram_gib=0.1)
    return JobQueued(job_id=job_id, attempt=0, ts=ts, data=QueuedData(request=REQUEST, cost=cost))


def test_a_new_job_is_found_by_its_id_in_the_list_and_among_the_active(valkey: str, redis: Redis) -> None:
    async def call(store: JobStore) -> None:
        job = await store.create(queued("one"))
        assert await store.get("one") == job == fold(Story(redis).log("one"))
        assert (job.status, job.request, job.created_at) == ("queued", REQUEST, 1_700_000_000.25)
        assert await store.list_active() == ["one"]
        assert await store.list_older(None, 10) == [(1_700_000_000.25, "one")]
        assert await store.get_many(["none", "one", "none"]) == [None, job, None]
        assert await store.get_many([]) == []

    ask(valkey, call)


@given(
    st.lists(st.sampled_from((0.0, 1.5, 1_700_000_000.123456, 1.7e9, 2e9)), max_size=12), st.integers(1, 5)
)
@settings(max_examples=40, deadline=None)
def test_pages_hold_every_job_once_in_order(valkey: str, times: list[float], size: int) -> None:
    """Jobs of one moment included."""
    with Redis.from_url(valkey) as redis:
        redis.delete(JOBS_KEY)
        jobs = [(ts, f"job{next(_numbers):06}") for ts in times]
        if jobs:
            redis.zadd(JOBS_KEY, {job_id: ts for ts, job_id in jobs})

    async def call(store: JobStore) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        older: list[tuple[float, str]] = []
        while page := await store.list_older(older[-1] if older else None, size):
            older += page
        newer: list[tuple[float, str]] = []
        while page := await store.list_newer(newer[-1] if newer else None, 1.7e9, size):
            newer += page
        return older, newer

    older, newer = ask(valkey, call)
    assert older == sorted(jobs, reverse=True)
    assert newer == sorted(job for job in jobs if job[0] <= 1.7e9)


def test_canceling_ends_a_job_that_waits_and_asks_one_that_runs(valkey: str, redis: Redis) -> None:
    async def call(store: JobStore) -> None:
        waits, runs = [await store.create(queued(job_id)) for job_id in ("waits", "runs")]
        story.start("runs")
        for job in (waits, await store.get("waits")):  # the second time changes nothing
            assert job is not None
            assert (await store.cancel(job, "by hand")).status == "canceled"
        assert [event.type for event in story.log("waits")] == ["job.queued", "job.canceled"]
        assert (await store.cancel(runs, "by hand")).status == "processing"  # it was read before it ran
        assert redis.exists(cancel_key("runs"))
        assert [event.type for event in story.log("runs")] == ["job.queued", "job.started"]

    story = Story(redis)
    ask(valkey, call)


def test_a_job_that_is_started_and_canceled_at_once_is_one_of_both(valkey: str, redis: Redis) -> None:
    async def call(store: JobStore) -> None:
        for number in range(25):
            job = await store.create(queued(f"job{number}"))
            starting = workers.submit(Story(redis).start_if_queued, job.id)
            after = await store.cancel(job, "by hand")
            started = await asyncio.wrap_future(starting)
            assert redis.exists(cancel_key(job.id))
            # A worker that was first finds the wish; one that was second does not get the job.
            assert after.status == ("processing" if started else "canceled")
            assert fold(Story(redis).log(job.id)) == await store.get(job.id)

    with ThreadPoolExecutor(1) as workers:
        ask(valkey, call)


def test_a_deleted_job_leaves_nothing(valkey: str, redis: Redis) -> None:
    async def call(store: JobStore) -> None:
        for job_id in ("gone", "kept"):
            job = await store.create(queued(job_id))
            story.preview(job_id, 0, 0, level=1)
            await store.cancel(job, "by hand")
        await store.delete("gone")
        await store.delete("gone")
        assert await store.get("gone") is None
        assert await store.list_active() == ["kept"]
        assert await store.list_older(None, 10) == [(1_700_000_000.25, "kept")]

    story = Story(redis)
    ask(valkey, call)
    assert redis.keys("*gone*") == []
    assert len(redis.keys("*kept*")) == 4  # record, log, previews, cancellation


def test_jobs_that_ended_may_be_forgotten_as_active(valkey: str) -> None:
    async def call(store: JobStore) -> list[str]:
        for job_id in ("one", "two", "three"):
            await store.create(queued(job_id))
        await store.forget_active(["one", "three", "never was"])
        await store.forget_active([])
        return await store.list_active()

    assert ask(valkey, call) == ["two"]


def test_ids_hold_the_time_when_they_were_drawn_and_grow() -> None:
    before = time.time()
    ids = [draw_job_id()]
    while len(ids) < 50:
        time.sleep(0.001)
        ids.append(draw_job_id())
    assert ids == sorted(set(ids))
    assert before - 0.001 <= read_time(ids[0]) <= read_time(ids[-1]) <= time.time()


@pytest.mark.parametrize("other", ["", "not-hex-at-all", "zz"])
def test_ids_of_others_have_no_time(other: str) -> None:
    assert read_time(other) == 0.0
