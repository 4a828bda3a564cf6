"""Makes job records and queues consistent again after a crash."""

import asyncio
import logging
import time
from typing import Final

from redis.exceptions import RedisError

from api_schemas.job import TERMINAL, Job, find_deadline
from api_schemas.stored import UnreadableRecordError
from api_schemas.wire import read_id
from service.indexes import Indexes
from service.job_queue import JobQueue
from service.job_store import JobStore, read_time
from service.jobs.dispatcher import Dispatcher
from service.metrics import Metrics
from service.quotas.usage import UsageStore
from service.webhooks.recovery import Recovery

# A record is written shortly after its id is listed; for a younger id it may not be there yet.
_SETTLED_S: Final = 60
_PAGE: Final = 500
log = logging.getLogger(__name__)


class Reconciler:
    """Enqueues jobs that should be in a queue and are not; removes those without a record. Idempotent."""

    def __init__(
        self,
        jobs: JobStore,
        queue: JobQueue,
        dispatcher: Dispatcher,
        indexes: Indexes,
        recovery: Recovery,
        usage: UsageStore,
        metrics: Metrics,
        interval_s: float,
    ) -> None:
        self._usage = usage
        self._jobs = jobs
        self._queue = queue
        self._dispatcher = dispatcher
        self._indexes = indexes
        self._recovery = recovery
        self._metrics = metrics
        self._interval_s = interval_s
        self._suspects: set[str] = set()

    async def run(self) -> None:
        """At start and then every `interval_s`, until cancelled."""
        while True:
            try:
                await self.reconcile()
            except (RedisError, OSError) as error:
                log.warning("records and queue cannot be compared: %s", error)
            await asyncio.sleep(self._interval_s)

    async def reconcile(self) -> None:
        """One pass over all jobs that may not have ended, and over the queues."""
        await self._indexes.repair()
        active = await self._jobs.list_active()
        suspects: set[str] = set()
        for start in range(0, len(active), _PAGE):
            page = active[start : start + _PAGE]
            jobs = await self._jobs.get_many(page)
            await self._usage.settle(job for job in jobs if isinstance(job, Job))
            for job_id, job in zip(page, jobs, strict=True):
                if await self._check(job_id, job):
                    suspects.add(job_id)
        self._suspects = suspects
        await self._remove_orphans()
        await self._recount(set(active))

    async def _check(self, job_id: str, job: Job | UnreadableRecordError | None) -> bool:
        """Check one job; True if it looks lost and must be checked again."""
        if job is None:
            if read_time(job_id) < time.time() - _SETTLED_S:
                await self._jobs.forget_active([job_id])
            return False
        if isinstance(job, UnreadableRecordError):
            return False  # another version may read it
        if job.status in TERMINAL:
            await self._recovery.restore(job)
            await self._jobs.forget_active([job_id])
            return False
        if (deadline := find_deadline(job)) is not None:
            await self._jobs.set_deadline(job_id, deadline)
        return await self._revive(job)

    async def _revive(self, job: Job) -> bool:
        presence = await self._queue.presence(job)
        if presence == "present":
            return False
        # RQ moves jobs between lists, so one may briefly be in none: it is lost if it still is at the next check.
        if presence == "unlisted" and job.id not in self._suspects:
            return True
        # A worker records the end of a job before RQ deletes it: by now it may have done both.
        current = await self._jobs.get(job.id)
        if current is None or current.status in TERMINAL:
            return False
        if await self._dispatcher.revive(job):
            log.warning("job %s was %s in the queue and is enqueued again", job.id, presence)
            self._metrics.jobs_revived.inc()
        return False

    async def _recount(self, active: set[str]) -> None:
        """What is counted as an open job of a key and is none that was just settled."""
        for key_id in await self._usage.list_keys():
            others = await self._usage.list_open(key_id) - {job_id.encode() for job_id in active}
            ids = [job_id for member in others if (job_id := read_id(member)) is not None]
            jobs = await self._jobs.get_many(ids)
            await self._usage.settle(job for job in jobs if isinstance(job, Job))
            gone = [job_id for job_id, job in zip(ids, jobs, strict=True) if job is None]
            garbage = [member for member in others if read_id(member) is None]
            await self._usage.forget(key_id, [*gone, *garbage])

    async def _remove_orphans(self) -> None:
        waiting = await self._queue.list_waiting()
        jobs = await self._jobs.get_many([entry.job_id for entry in waiting])
        for entry, job in zip(waiting, jobs, strict=True):
            if job is None or (isinstance(job, Job) and job.status in TERMINAL):
                await self._queue.drop(entry)
