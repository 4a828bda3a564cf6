"""Which job is next: API keys take turns (deploy/decisions/0010)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from redis.exceptions import RedisError

from api_schemas.job import Job
from api_schemas.keys import Quota
from service.job_queue import JobQueue

_INTERVAL_S: Final = 0.5
log = logging.getLogger(__name__)

QuotaOf = Callable[[str], Awaitable[Quota | None]]


class Dispatcher:
    """Any number of processes may do it, and each may die at any moment. Workers go on by themselves while there is none.

    Args:
        quota_of: a key, by its id; None if there is no such key any more.
    """

    def __init__(self, queue: JobQueue, quota_of: QuotaOf) -> None:
        self._queue = queue
        self._quota_of = quota_of

    async def enqueue(self, job: Job) -> bool:
        """Let a recorded job wait for its turn, or give it to an idle worker at once; False if it is in a queue already."""
        return await self._queue.enqueue(job, await self._find_limit(job.key_id))

    async def revive(self, job: Job) -> bool:
        """Enqueue a job again, whatever RQ has of it; False if another process just did."""
        return await self._queue.revive(job, await self._find_limit(job.key_id))

    async def run(self) -> None:
        """Until cancelled: apply limits as they are now, and give jobs to workers that do not look for them by themselves."""
        while True:
            try:
                await self.dispatch()
            except (RedisError, OSError) as error:
                log.warning("jobs that wait cannot be dispatched: %s", error)
            await asyncio.sleep(_INTERVAL_S)

    async def dispatch(self) -> None:
        """One pass over all models."""
        for model, keys in (await self._queue.list_keys()).items():
            await self._queue.release(model, [(key, await self._find_limit(key)) for key in keys])

    async def _find_limit(self, key_id: str) -> int | None:
        """Jobs that a key may have at workers; those of the local user are not limited."""
        quota = await self._quota_of(key_id) if key_id else None
        return None if quota is None else quota.concurrent_jobs
