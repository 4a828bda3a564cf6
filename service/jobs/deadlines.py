"""Jobs that have not started, or not ended, by the time that was asked for expire."""

import asyncio
import logging
import time
from typing import Final

from redis.exceptions import RedisError

from api_schemas.job import TERMINAL, Job, find_deadline
from service.job_queue import JobQueue
from service.job_store import JobStore

_INTERVAL_S: Final = 0.5
log = logging.getLogger(__name__)


class Deadlines:
    """Idempotent: any number of services may do it. Workers watch the jobs that they run by themselves, too."""

    def __init__(self, jobs: JobStore, queue: JobQueue) -> None:
        self._jobs = jobs
        self._queue = queue

    async def run(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            try:
                await self.expire()
            except (RedisError, OSError) as error:
                log.warning("deadlines cannot be looked at: %s", error)
            await asyncio.sleep(_INTERVAL_S)

    async def expire(self) -> None:
        """One pass over the jobs whose deadline has passed."""
        due = await self._jobs.list_due()
        for job_id, job in zip(due, await self._jobs.get_many(due), strict=True):
            if isinstance(job, Job) and job.status not in TERMINAL:
                await self._look_at(job)
            elif job is None or isinstance(job, Job):  # another version may read the others
                await self._jobs.set_deadline(job_id, None)

    async def _look_at(self, job: Job) -> None:
        deadline = find_deadline(job)
        if deadline is None or deadline > time.time():  # it has started in time
            await self._jobs.set_deadline(job.id, deadline)
        elif job.status == "queued" or not await self._queue.is_held(job):
            await self._expire(job)
        else:  # its worker stops it, as soon as it notices
            await self._jobs.ask_to_expire(job)

    async def _expire(self, job: Job) -> None:
        job = await self._jobs.expire(job)
        if job.status in TERMINAL:
            log.info("job %s %s: %s", job.id, job.status, job.error and job.error.message)
            await self._queue.remove(job)
