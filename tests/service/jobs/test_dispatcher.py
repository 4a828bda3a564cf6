"""API keys take turns at the workers, and of their own jobs the most urgent comes first; nothing is lost and nothing comes twice."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.catalog import Cost
from api_schemas.events import JobQueued, QueuedData
from api_schemas.generation import ResolvedRequest
from api_schemas.job import Job, begin
from api_schemas.waiting import RELEASE, name_keys, release_arguments
from api_schemas.wire import WORKER_KEY_PREFIX, WORKERS_KEY, queue_name
from service.job_queue import JobQueue
from service.jobs.dispatcher import Dispatcher
from service.metrics import Metrics
from service.rq_queues import RqQueues
from service.unreadable import UnreadableRecords
from tests.poison import change_type, spoil

MODEL = "glow"
QUEUE = queue_name(MODEL)
DAY_S = 86_400.0
LEVELS = {"high": 0, "normal": 1, "low": 2}
KEYS = [f"{number:012x}" for number in range(11)] + [""]


@dataclass(frozen=True)
class Limit:
    concurrent_jobs: int | None


@dataclass
class Line:
    """A queue whose workers are played: each takes what RQ's queue has, and looks for more when it is done."""

    url: str
    redis: AsyncRedis
    queue: JobQueue
    dispatcher: Dispatcher
    limits: dict[str, int]
    known: dict[str, Job] = field(default_factory=dict[str, Job])
    running: list[str] = field(default_factory=list[str])
    started: list[str] = field(default_factory=list[str])

    async def employ(self, workers: int) -> None:
        for number in range(workers):
            await self.redis.set(f"{WORKER_KEY_PREFIX}w{number}", MODEL)
            await self.redis.sadd(WORKERS_KEY, f"w{number}")

    async def add(self, job: Job) -> None:
        self.known[job.id] = job
        assert await self.dispatcher.enqueue(job)
        await self.take()

    async def take(self) -> None:
        """Idle workers start what was released."""
        while (released := await self.redis.lpop(f"rq:queue:{QUEUE}")) is not None:
            job_id = released.decode()
            await self.redis.zadd(f"rq:wip:{QUEUE}", {f"{job_id}:run": time.time() + 600})
            await self.redis.hset(f"rq:job:{job_id}", "status", "started")
            self.running.append(job_id)
            self.started.append(job_id)

    async def end(self, job_id: str) -> None:
        """A worker is done, and looks for its next job as the worker's loop does."""
        self.running.remove(job_id)
        await self.redis.zrem(f"rq:wip:{QUEUE}", f"{job_id}:run")
        await self.redis.delete(f"rq:job:{job_id}")
        await self.look()

    async def look(self) -> None:
        await self.redis.register_script(RELEASE)(name_keys(QUEUE), release_arguments(MODEL, is_idle=True))
        await self.take()

    async def work_off(self) -> list[str]:
        """Run all that waits, one job after the other; the order in which they start."""
        before = len(self.started)
        while self.running:
            await self.end(self.running[0])
        return self.started[before:]

    def list_waiting(self) -> list[Job]:
        return [job for job_id, job in self.known.items() if job_id not in self.started]


@asynccontextmanager
async def open_line(url: str) -> AsyncIterator[Line]:
    limits: dict[str, int] = {}

    async def find_quota(key_id: str) -> Limit:
        return Limit(limits.get(key_id))

    client, blocking = AsyncRedis.from_url(url), Redis.from_url(url)
    unreadable = UnreadableRecords(Metrics())
    queue = JobQueue(client, RqQueues(blocking, unreadable, timeout_s=60, retries=3))
    try:
        yield Line(url, client, queue, Dispatcher(queue, find_quota), limits)
    finally:
        await client.aclose()
        blocking.close()


Play = Callable[[Callable[[Line], Awaitable[None]]], None]


@pytest.fixture
def play(valkey: str) -> Play:
    async def run(scene: Callable[[Line], Awaitable[None]]) -> None:
        async with open_line(valkey) as line:
            await scene(line)

    return lambda scene: asyncio.run(run(scene))


def make_job(number: int, key_id: str = "", priority: str = "normal", came_at: float = 1.7e9) -> Job:
    request = ResolvedRequest.model_validate(
        {"model": MODEL, "steps": 1, "guidance_scale": 1.0, "seed": 1, "priority": priority}
    )
    data = QueuedData(request=request, cost=Cost(tiles=1, megapixel_steps=1, vram_gib=1), key_id=key_id)
    return begin(JobQueued(job_id=f"{number:028x}", attempt=0, ts=came_at + number * 1e-3, data=data))


def order_within_key(job: Job) -> tuple[float, str]:
    """A level of priority is worth a day."""
    return round(job.created_at + LEVELS[job.request.priority] * DAY_S, 6), job.id


def test_of_a_thousand_random_arrivals_none_waits_too_long(play: Play) -> None:
    """While a job waits, each other key has at most as many turns as its own has, and its own only more urgent ones."""
    chance = random.Random(random.randrange(1 << 32))
    arrivals = [
        make_job(number, chance.choice(KEYS), chance.choice(list(LEVELS)), 1.7e9 + number * 1200)
        for number in range(1000)
    ]
    came: dict[str, int] = {}

    async def scene(line: Line) -> None:
        await line.employ(3)
        for job in arrivals:
            came[job.id] = len(line.started)
            await line.add(job)
            while line.running and chance.random() < 0.45:
                await line.end(chance.choice(line.running))
        await line.work_off()
        assert sorted(line.started) == sorted(came)
        for place, job_id in enumerate(line.started):
            job = line.known[job_id]
            meanwhile = [line.known[each] for each in line.started[came[job_id] : place + 1]]
            turns = Counter(each.key_id for each in meanwhile)
            assert all(count <= turns[job.key_id] for count in turns.values())
            own = [each for each in meanwhile if each.key_id == job.key_id]
            assert all(order_within_key(each) <= order_within_key(job) for each in own)

    play(scene)


def test_keys_that_all_wait_get_the_same_within_one_job(play: Play) -> None:
    async def scene(line: Line) -> None:
        for number in range(60):  # one after the other, each with all it has
            await line.add(make_job(number, KEYS[number // 12]))
        await line.employ(2)
        await line.dispatcher.dispatch()
        await line.take()
        assert len(line.running) == 2
        while line.running:
            await line.end(line.running[0])
            counts = Counter(dict.fromkeys(KEYS[:5], 0))
            counts.update(line.known[each].key_id for each in line.started)
            assert max(counts.values()) - min(counts.values()) <= 1
        assert set(counts.values()) == {12}

    play(scene)


@pytest.mark.parametrize("keys", [1, 7])
def test_positions_are_the_order_in_which_jobs_start(play: Play, keys: int) -> None:
    chance = random.Random(keys)

    async def scene(line: Line) -> None:
        await line.employ(1)
        for number in range(80):
            await line.add(make_job(number, chance.choice(KEYS[:keys]), chance.choice(list(LEVELS))))
            if number % 5 == 4:
                await line.end(line.running[0])
        waiting = line.list_waiting()
        positions = await line.queue.find_positions([*waiting, line.known[line.running[0]]])
        assert positions.pop() is None
        crowd = await line.queue.count(MODEL, "")
        assert crowd.listed + crowd.waiting == len(waiting)
        by_position = dict(zip(positions, (job.id for job in waiting), strict=True))
        assert [by_position[place] for place in range(len(waiting))] == await line.work_off()

    play(scene)


def test_a_key_that_had_no_turn_is_next_and_the_most_urgent_of_those_first(play: Play) -> None:
    async def scene(line: Line) -> None:
        await line.employ(1)
        for number in range(4):
            await line.add(make_job(number, "a"))
        asked = {"b": "normal", "c": "low", "d": "high", "e": "normal"}
        for number, (key_id, priority) in enumerate(asked.items()):
            await line.add(make_job(10 + 2 * number, key_id, priority))
            await line.add(make_job(11 + 2 * number, key_id, priority))
        keys = [line.known[each].key_id for each in await line.work_off()]
        assert keys == [*"dbec", "a", *"dbec", "a", "a"]

    play(scene)


def test_a_key_at_its_limit_is_passed_over_until_it_is_raised(play: Play) -> None:
    async def scene(line: Line) -> None:
        line.limits["a"] = 1
        await line.employ(3)
        jobs = [make_job(number, "a" if number < 5 else "b") for number in range(6)]
        for job in jobs:
            await line.add(job)
        assert line.running == [jobs[0].id, jobs[5].id]  # a worker has nothing to do
        await line.dispatcher.dispatch()
        await line.take()
        assert len(line.running) == 2
        line.limits["a"] = 2
        await line.dispatcher.dispatch()
        await line.take()
        assert line.running == [jobs[0].id, jobs[5].id, jobs[1].id]
        await line.end(jobs[5].id)
        assert len(line.running) == 2
        await line.end(jobs[0].id)
        assert line.running == [jobs[1].id, jobs[2].id]
        del line.limits["a"]
        await line.dispatcher.dispatch()
        await line.take()
        assert len(line.running) == 3

    play(scene)


def test_what_is_removed_leaves_the_others_their_turns(play: Play) -> None:
    async def scene(line: Line) -> None:
        await line.employ(1)
        jobs = [make_job(number, "ab"[number % 2]) for number in range(8)]
        for job in jobs:
            await line.add(job)
        for number in (2, 3, 5, 7):  # all of "b" but one that comes first
            await line.queue.remove(jobs[number])
            del line.known[jobs[number].id]
        assert not await line.redis.exists(f"rq:job:{jobs[2].id}")
        assert await line.work_off() == [jobs[number].id for number in (1, 4, 6)]
        assert await line.redis.zcard(f"chorale:turns:{QUEUE}") == 0

    play(scene)


def test_a_job_that_is_known_is_not_queued_twice_wherever_it_is(play: Play) -> None:
    async def scene(line: Line) -> None:
        await line.employ(1)
        running, waiting = make_job(0), make_job(1)
        for job in (running, waiting):
            await line.add(job)
        for job in (running, waiting):
            assert not await line.dispatcher.enqueue(job)
            assert await line.queue.presence(job) == "present"
        assert await line.queue.is_held(running)
        assert not await line.queue.is_held(waiting)
        assert await line.work_off() == [waiting.id]

    play(scene)


def test_jobs_start_though_the_keys_beside_them_are_garbage_or_gone(play: Play) -> None:
    """What lies under `waiting` itself is put back from the records, by the reconciler."""
    names = [f"chorale:{name}:{QUEUE}" for name in ("turns", "served", "limits", "sizes")]

    async def scene(line: Line) -> None:
        await line.employ(1)
        for number in range(12):
            await line.add(make_job(number, KEYS[number % 3]))
        waiting = f"chorale:waiting:{QUEUE}"
        with Redis.from_url(line.url) as redis:
            for name in names:
                redis.delete(name)
            await line.end(line.running[0])
            for poison in (spoil, change_type):
                for name in (waiting, *names):
                    if redis.exists(name) and (name, poison) != (waiting, change_type):
                        poison(redis, name.encode())
                await line.end(line.running[0])
        await line.work_off()
        assert sorted(line.started) == sorted(line.known)

    play(scene)


def test_several_processes_dispatch_at_once(play: Play) -> None:
    async def scene(line: Line) -> None:
        await line.employ(4)
        jobs = [make_job(number, KEYS[number % 5]) for number in range(40)]
        await asyncio.gather(*(line.dispatcher.enqueue(job) for job in jobs))
        await asyncio.gather(*(line.dispatcher.dispatch() for _ in range(8)))
        assert await line.redis.llen(f"rq:queue:{QUEUE}") == 4
        line.known |= {job.id: job for job in jobs}
        await line.take()
        await line.work_off()
        assert sorted(line.started) == sorted(line.known)

    play(scene)
