"""What a key has used is what its jobs' records say, and no order of requests gets more than its quota."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.catalog import Cost
from api_schemas.events import (
    JobPreempted,
    JobQueued,
    PreemptedData,
    QueuedData,
    Result,
)
from api_schemas.generation import ResolvedRequest, SentPicture
from api_schemas.job import Job
from api_schemas.keys import Quota
from api_schemas.usage import USAGE_KEY
from service.job_store import JobStore
from service.jobs.intake import draw_job_id
from service.metrics import Metrics
from service.quotas.places import Lack
from service.quotas.usage import UsageStore, Used
from service.unreadable import UnreadableRecords
from tests.poison import Poison, change_type, spoil
from tests.story import Story

KEY, OTHER = "0123456789ab", "ba9876543210"
HOUR_S, DAY_S = 3600.0, 86_400.0
T = TypeVar("T")


@dataclass(frozen=True)
class Stores:
    jobs: JobStore
    usage: UsageStore


def ask(url: str, call: Callable[[Stores], Coroutine[None, None, T]]) -> T:
    async def run() -> T:
        async with AsyncRedis.from_url(url) as client:
            return await call(Stores(JobStore(client, UnreadableRecords(Metrics())), UsageStore(client)))

    return asyncio.run(run())


def queued(steps: float = 1.0, sent_bytes: int = 0, ts: float = 0.0, key_id: str = KEY) -> JobQueued:
    picture = SentPicture(sha256="", width_px=1, height_px=1, size_bytes=sent_bytes)
    request = ResolvedRequest(
        model="glow",
        steps=12,
        guidance_scale=5.0,
        seed=7,
        pictures={"control_image": picture} if sent_bytes else {},
    )
    data = QueuedData(request=request, cost=Cost(tiles=1, megapixel_steps=steps, vram_gib=0.1), key_id=key_id)
    return JobQueued(job_id=draw_job_id(), attempt=0, ts=ts or time.time(), data=data)


def result(stored_bytes: int) -> Result:
    return Result(
        image_key="i", pyramid_key="p", media_type="image/png", width_px=1, height_px=1, size_bytes=1,
        stored_bytes=stored_bytes, sha256="", engine_s=1.0,
    )  # fmt: skip


@dataclass
class Entry:
    """A job as the rule sees it."""

    id: str
    created_at: float
    steps: float
    bytes: int
    state: str = "queued"
    began: bool = False
    kept: bool = True


class Rule:
    """The published rule, in the plainest words: sums over all jobs of a key."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.entries: list[Entry] = []

    def counted(self) -> list[Entry]:
        """Those whose megapixel-steps count: created within a day, unless they ended before they began."""
        recent = [entry for entry in self.entries if time.time() - entry.created_at < DAY_S]
        return [entry for entry in recent if entry.began or entry.state != "ended"]

    def use(self) -> Used:
        states = [entry.state for entry in self.entries]
        counted = self.counted()
        return Used(
            queued_jobs=states.count("queued"),
            running_jobs=states.count("running"),
            megapixel_steps=pytest.approx(sum(entry.steps for entry in counted)),
            steps_free_at=pytest.approx(max((e.created_at + DAY_S for e in counted), default=0.0), abs=0.01),
            store_bytes=sum(entry.bytes for entry in self.entries if entry.kept),
            call_s=0.0,
        )

    def find_lack(self, steps: float) -> tuple[str, float | None] | None:
        """The limit that is reached, and from when enough megapixel-steps are free."""
        use, quota = self.use(), self.quota
        if quota.queued_jobs is not None and use.queued_jobs + 1 > quota.queued_jobs:
            return "queued_jobs", None
        most, used = quota.megapixel_steps_per_day, sum(entry.steps for entry in self.counted())
        if most is not None and used + steps > most + 1e-9:
            for entry in sorted(self.counted(), key=lambda entry: entry.created_at):
                used -= entry.steps
                if used + steps <= most + 1e-9:
                    return "megapixel_steps", entry.created_at + DAY_S
            return "megapixel_steps", None
        if quota.store_bytes is not None and use.store_bytes >= quota.store_bytes:
            return "store_bytes", None
        return None


AGES_S = (0.0, HOUR_S, 5 * HOUR_S, 23.9 * HOUR_S, 24.1 * HOUR_S, 50 * HOUR_S)
creations = st.tuples(
    st.just("create"), st.sampled_from(AGES_S), st.sampled_from((0.001, 1.5, 4.0)), st.sampled_from((0, 30))
)
changes = st.tuples(
    st.sampled_from(("start", "start", "preempt", "succeed", "fail", "cancel", "delete", "settle")),
    st.integers(0, 30),
)
quotas = st.builds(
    Quota,
    queued_jobs=st.none() | st.integers(1, 5),
    megapixel_steps_per_day=st.none() | st.sampled_from((4.0, 5.501, 12.0)),
    store_bytes=st.none() | st.sampled_from((1, 100, 250)),
)


NEW = ("create", 0.0, 1.5, 30)
LIFE = [NEW, ("start", 0), ("preempt", 0), ("cancel", 0), ("delete", 0), NEW, ("start", 1), ("succeed", 1)]


@example(Quota(), [*LIFE, NEW, ("cancel", 2), ("settle", 1), ("delete", 1)])
@given(quotas, st.lists(creations | creations | changes | changes | changes, max_size=40))
@settings(max_examples=30, deadline=None)
def test_use_and_refusals_are_those_of_the_rule(
    valkey: str, quota: Quota, moves: list[tuple[object, ...]]
) -> None:
    async def call(stores: Stores) -> None:
        rule = Rule(quota)
        for name, *chosen in moves:
            if name == "create":
                await _create(stores, rule, *chosen)
            elif rule.entries:
                await _change(stores, story, rule.entries[chosen[0] % len(rule.entries)], name)
            assert await stores.usage.read(KEY) == rule.use()

    with Redis.from_url(valkey) as redis:
        redis.flushall()
        story = Story(redis)
        ask(valkey, call)


async def _create(stores: Stores, rule: Rule, age_s: float, steps: float, sent_bytes: int) -> None:
    event = queued(steps, sent_bytes, time.time() - age_s)
    lack = rule.find_lack(steps)
    made = await stores.jobs.create(event, quota=rule.quota)
    if lack is None:
        assert isinstance(made, Job)
        rule.entries.append(Entry(made.id, event.ts, steps, sent_bytes))
        return
    assert isinstance(made, Lack)
    assert made.limit == lack[0]
    assert await stores.jobs.get(event.job_id) is None
    if lack[1] is not None:
        assert made.free_at == pytest.approx(lack[1], abs=0.01)


async def _change(stores: Stores, story: Story, entry: Entry, name: str) -> None:
    """Let a job go on as a worker, a client or retention does; what cannot be at this time does not happen."""
    job = await stores.jobs.get(entry.id)
    if name == "start" and entry.state == "queued":
        story.start(entry.id)
        entry.state, entry.began = "running", True
    elif name == "preempt" and entry.state == "running":
        data = PreemptedData(step=0, reason="")
        story.append(JobPreempted(job_id=entry.id, attempt=1, ts=time.time(), data=data))
        entry.state = "queued"
    elif name == "succeed" and entry.state == "running":
        story.succeed(entry.id, result(stored_bytes=70))
        entry.state, entry.bytes = "ended", entry.bytes + 70
    elif name == "fail" and entry.state == "running":
        story.fail(entry.id)
        entry.state = "ended"
    elif name == "cancel" and entry.state == "queued":
        assert job is not None
        await stores.jobs.cancel(job, "by hand")
        entry.state = "ended"
    elif name == "delete" and entry.state == "ended" and job is not None:
        await stores.usage.forget(KEY, [entry.id])
        await stores.jobs.delete(entry.id)
        entry.kept = False
    elif name == "settle" and job is not None:
        await stores.usage.settle([job, job])


@pytest.mark.parametrize(
    ("quota", "limit", "places"),
    [
        (Quota(queued_jobs=7), "queued_jobs", 7),
        (Quota(megapixel_steps_per_day=11.0), "megapixel_steps", 5),
        (Quota(store_bytes=300), "store_bytes", 3),
    ],
)
def test_of_many_requests_at_once_none_gets_a_place_that_is_not_there(
    valkey: str, redis: Redis, quota: Quota, limit: str, places: int
) -> None:
    """From two processes; a refused one leaves nothing, and another key does not notice."""

    async def call(stores: Stores) -> None:
        async with AsyncRedis.from_url(valkey) as client:
            other = JobStore(client, UnreadableRecords(Metrics()))
            made = await asyncio.gather(
                *(store.create(queued(2.0, 100), quota=quota) for store in [stores.jobs, other] * 12)
            )
        kept = [job for job in made if isinstance(job, Job)]
        assert len(kept) == places
        assert {lack.limit for lack in made if isinstance(lack, Lack)} == {limit}
        assert await stores.jobs.list_active() == sorted(job.id for job in kept)
        assert len(await stores.jobs.list_older(None, 100)) == places
        used = await stores.usage.read(KEY)
        assert (used.queued_jobs, used.megapixel_steps, used.store_bytes) == (
            places,
            2.0 * places,
            100 * places,
        )
        assert isinstance(await stores.jobs.create(queued(2.0, 100, key_id=OTHER), quota=quota), Job)

    ask(valkey, call)
    assert len(redis.keys("chorale:job:*")) == places + 1


def test_jobs_that_are_made_together_are_all_made_or_none(valkey: str, redis: Redis) -> None:
    """From two processes, which get what fits and no part of what does not."""

    async def call(stores: Stores) -> None:
        async with AsyncRedis.from_url(valkey) as client:
            other = JobStore(client, UnreadableRecords(Metrics()))
            asked = [[queued() for _ in range(size)] for size in (8, 8, 3, 8, 5)]
            made = await asyncio.gather(
                *(
                    store.create_all(events, quota=Quota(queued_jobs=15))
                    for store, events in zip([stores.jobs, other] * 3, asked, strict=False)
                )
            )
        whole = [jobs for jobs in made if not isinstance(jobs, Lack)]
        kept = [job.id for jobs in whole for job in jobs]
        assert {len(jobs) for jobs in whole} <= {8, 3, 5}
        assert 8 <= len(kept) <= 15
        assert await stores.jobs.list_active() == sorted(kept)
        assert len(await stores.jobs.list_older(None, 100)) == len(kept)
        used = await stores.usage.read(KEY)
        assert (used.queued_jobs, used.megapixel_steps) == (len(kept), len(kept))
        again = await stores.jobs.create_all(asked[made.index(whole[0])], quota=Quota(queued_jobs=1))
        assert again == whole[0]  # sent again, as where the connection broke before the answer

    ask(valkey, call)
    events = redis.xrange("chorale:live", "-", "+")
    assert len(events) == len(redis.keys("chorale:job:*"))


def test_a_job_that_is_written_twice_is_counted_once(valkey: str) -> None:
    """As where the connection breaks before the answer: the client library sends the transaction again."""

    async def call(stores: Stores) -> None:
        event, quota = queued(2.0, 100), Quota(queued_jobs=1, megapixel_steps_per_day=2, store_bytes=1)
        first = await stores.jobs.create(event, quota=quota)
        assert await stores.jobs.create(event, quota=quota) == first
        used = await stores.usage.read(KEY)
        assert (used.queued_jobs, used.megapixel_steps, used.store_bytes) == (1, 2.0, 100)

    ask(valkey, call)


def test_what_a_job_without_a_key_uses_is_not_counted(valkey: str, redis: Redis) -> None:
    async def call(stores: Stores) -> None:
        made = await stores.jobs.create(queued(key_id=""))
        assert isinstance(made, Job)
        Story(redis).start(made.id)

    ask(valkey, call)
    assert redis.keys(f"{USAGE_KEY}*") == []


def test_files_that_a_child_gets_later_are_its_own(valkey: str, redis: Redis) -> None:
    async def call(stores: Stores) -> None:
        made = await stores.jobs.create(queued(1.0, 100))
        assert isinstance(made, Job)
        story.start(made.id)
        story.succeed(made.id, result(50))
        await stores.usage.add_bytes(story.job(made.id), 7)
        assert (await stores.usage.read(KEY)).store_bytes == 157
        job = story.job(made.id)
        await stores.usage.forget(KEY, [made.id])
        await stores.jobs.delete(made.id)
        await stores.usage.add_bytes(job, 7)  # it has just gone
        assert (await stores.usage.read(KEY)).store_bytes == 0

    story = Story(redis)
    ask(valkey, call)


@pytest.mark.parametrize("poison", [spoil, change_type])
def test_garbage_in_an_account_hinders_no_job(valkey: str, redis: Redis, poison: Poison) -> None:
    async def call(stores: Stores) -> None:
        for key in sorted(redis.keys(f"{USAGE_KEY}*")) or [b""]:
            waits, runs, ends = [await stores.jobs.create(queued(1.0, 10)) for _ in range(3)]
            assert isinstance(waits, Job)
            assert isinstance(runs, Job)
            assert isinstance(ends, Job)
            poison(redis, key) if key else None
            story.start(runs.id)
            story.start(ends.id)
            story.succeed(ends.id, result(50))
            jobs = [story.job(job.id) for job in (waits, runs, ends)]
            assert [job.status for job in jobs] == ["queued", "processing", "succeeded"]
            assert isinstance(await stores.jobs.create(queued(), quota=Quota(queued_jobs=1000)), Job)
            await stores.usage.read(KEY)
            await stores.usage.settle(jobs)
            assert {job.id.encode() for job in jobs[:2]} <= await stores.usage.list_open(KEY)

    story = Story(redis)
    ask(valkey, call)
    ask(valkey, call)
    assert len(redis.keys(f"{USAGE_KEY}*")) >= 7
