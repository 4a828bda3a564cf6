"""All jobs that wait for a worker: those that have a place in RQ's queue of their model, and those before it."""

import asyncio
from collections.abc import Sequence

from anyio import to_thread
from redis.asyncio import Redis

from api_schemas.job import Job
from api_schemas.waiting import name_member
from service.rq_queues import Entry, Load, Presence, RqQueues
from service.waiting import Limits, WaitingCounts, WaitingJobs


class JobQueue:
    """What RQ does runs in a thread; scripts and lists are read directly."""

    def __init__(self, redis: Redis, rq: RqQueues) -> None:
        self._rq = rq
        self._waiting = WaitingJobs(redis)

    async def enqueue(self, job: Job, limit: int | None = None) -> bool:
        """Let a job wait, or give it to a worker that is idle; False if it is in a queue already.

        Args:
            limit: jobs that its API key may have at workers.
        """
        return await self._waiting.enqueue(job, self._rq.describe(job.id, job.request.model), limit)

    async def release(self, model: str, limits: Limits) -> None:
        """Give the next jobs to workers that are idle, with the limits of the keys that have jobs waiting."""
        await self._waiting.release(model, limits)

    async def presence(self, job: Job) -> Presence:
        """Whether the job waits or runs, is unknown here, or is known but in no list of live jobs."""
        return await to_thread.run_sync(self._rq.presence, job)

    async def is_held(self, job: Job) -> bool:
        """Whether a worker has it whose lease has not run out."""
        return await to_thread.run_sync(self._rq.is_held, job)

    async def revive(self, job: Job, limit: int | None = None) -> bool:
        """Enqueue a job again, whatever state RQ has of it; False if another process just did."""
        await to_thread.run_sync(self._rq.clear, job.id, job.request.model)
        return await self.enqueue(job, limit)

    async def remove(self, job: Job) -> None:
        """Remove a job from its queue; nothing happens if it is not there."""
        await self.drop(Entry(job.id, job.request.model, name_member(job).encode()))

    async def drop(self, entry: Entry) -> None:
        """The same for one that may have no record."""
        waited = entry.member is not None and await self._waiting.remove(entry.model, entry.member)
        if not waited:
            await to_thread.run_sync(self._rq.remove, entry.job_id)

    async def forget(self, job_id: str) -> None:
        """Delete what RQ still stores about an ended job."""
        await to_thread.run_sync(self._rq.forget, job_id)

    async def count(self, model: str, key_id: str) -> WaitingCounts:
        """How many wait for this model, as this API key finds it."""
        return await self._waiting.count(model, key_id)

    async def measure(self) -> dict[str, Load]:
        """What waits and runs, by model."""
        return await to_thread.run_sync(self._rq.measure)

    async def find_positions(self, jobs: Sequence[Job]) -> list[int | None]:
        """Number of jobs ahead of each of these, None where it is not waiting; in one call for each model."""
        by_model: dict[str, list[Job]] = {}
        for job in jobs:
            by_model.setdefault(job.request.model, []).append(job)
        found = await asyncio.gather(*(self._waiting.find_positions(*each) for each in by_model.items()))
        ids = (job.id for group in by_model.values() for job in group)
        positions = dict(zip(ids, (each for group in found for each in group), strict=True))
        return [positions[job.id] for job in jobs]

    async def list_waiting(self) -> list[Entry]:
        """All jobs that wait, for whichever model."""
        return await to_thread.run_sync(self._rq.list_waiting)

    async def list_keys(self) -> dict[str, list[str]]:
        """API keys that have jobs before RQ's queue, by model."""
        return await to_thread.run_sync(self._rq.list_keys)

    async def names(self) -> list[str]:
        """Of the queues that ever held a job of the service."""
        return await to_thread.run_sync(self._rq.names)
