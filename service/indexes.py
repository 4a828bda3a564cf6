"""Keys of Redis that are no single record, kept usable: one of a wrong type is moved aside, and what can be is rebuilt."""

from collections.abc import AsyncIterator, Awaitable
from typing import Final, cast

from redis.asyncio import Redis

from api_schemas.job import TERMINAL, Job
from api_schemas.webhook import DUE_KEY, WEBHOOKS_QUEUE
from api_schemas.wire import (
    ACTIVE_KEY,
    JOBS_KEY,
    SET_ASIDE,
    UNREADABLE_PREFIX,
    children_key,
    index_types,
    job_key,
    read_id,
)
from service.job_queue import JobQueue
from service.job_store import JobStore
from service.unreadable import UnreadableRecords
from service.webhooks.recovery import Recovery

_PAGE: Final = 500
_REBUILT: Final = (JOBS_KEY, ACTIVE_KEY, DUE_KEY)


class Indexes:
    """Idempotent: any number of services may do it."""

    def __init__(
        self,
        redis: Redis,
        jobs: JobStore,
        queue: JobQueue,
        recovery: Recovery,
        unreadable: UnreadableRecords,
    ) -> None:
        self._redis = redis
        self._jobs = jobs
        self._queue = queue
        self._recovery = recovery
        self._unreadable = unreadable

    async def repair(self) -> None:
        """Move keys of a wrong type aside; list all jobs again if one of their lists was among them."""
        orphaned = self._jobs.lost_children.copy()
        types = index_types([*await self._queue.names(), WEBHOOKS_QUEUE]) | dict.fromkeys(
            map(children_key, orphaned), "set"
        )
        moved = await cast(
            Awaitable[list[bytes]], self._redis.eval(SET_ASIDE, len(types), *types, *types.values())
        )
        for key in moved:
            self._unreadable.tell(
                "index", key, f"of another type; it is now {UNREADABLE_PREFIX}{key.decode()}"
            )
        aside = [UNREADABLE_PREFIX + key for key in _REBUILT]
        if orphaned or await self._redis.exists(*aside):
            await self._list_all_jobs(orphaned)
            await self._redis.delete(*aside, *(UNREADABLE_PREFIX + children_key(each) for each in orphaned))
            self._jobs.lost_children -= orphaned

    async def _list_all_jobs(self, orphaned: set[str]) -> None:
        async for job_ids in self._scan():
            for job in await self._jobs.get_many(job_ids):
                if isinstance(job, Job):
                    await self._list(job, orphaned)

    async def _list(self, job: Job, orphaned: set[str]) -> None:
        parent = job.request.parent
        await self._redis.zadd(JOBS_KEY, {job.id: job.created_at})
        if job.status not in TERMINAL:
            await self._redis.sadd(ACTIVE_KEY, job.id)
        if parent is not None and parent in orphaned:
            await self._redis.sadd(children_key(parent), job.id)
        await self._recovery.restore(job)

    async def _scan(self) -> AsyncIterator[list[str]]:
        """Ids of all jobs that have a record, a page at a time."""
        cursor, prefix = 0, job_key("")
        while True:
            cursor, keys = cast(
                tuple[int, list[bytes]],
                await self._redis.scan(cursor, f"{prefix}*", _PAGE),  # pyright: ignore[reportUnknownMemberType]
            )
            found = (read_id(key.removeprefix(prefix.encode())) for key in keys)
            yield [job_id for job_id in found if job_id is not None]
            if cursor == 0:
                return
