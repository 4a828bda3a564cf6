"""The records of all jobs in Redis: each is a log of events and the state folded from it."""

import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from api_schemas.events import CanceledData, DurableEvent, ExpiredData, JobCanceled, JobExpired, JobQueued
from api_schemas.job import TERMINAL, Job, apply, begin, explain_expiry
from api_schemas.keys import Quota
from api_schemas.stored import UnreadableRecordError
from api_schemas.webhook import deliveries_key, webhook_key
from api_schemas.wire import (
    ACTIVE_KEY,
    APPEND_EVENT,
    CHANGE_SET,
    DEADLINES_KEY,
    EXPIRED,
    JOBS_KEY,
    RECORD,
    append_event,
    cancel_key,
    children_key,
    events_key,
    job_key,
    jobs_of_key,
    previews_key,
    read_id,
    read_job,
)
from service.errors import JobNotFoundError, JobUnreadableError
from service.new_jobs import write_all
from service.quotas.places import Lack
from service.unreadable import UnreadableRecords, require_wrong_type

_CANCEL_LIFETIME_S: Final = 7 * 86_400
_DUE_AT_ONCE: Final = 100
_Row = list[bytes | None] | RedisError


class JobStore:
    """Reads every record; writes only what happens before a worker has the job."""

    def __init__(self, redis: Redis, unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self.unreadable = unreadable
        self.lost_children: set[str] = set()  # of these jobs; to be found again in all records

    async def create(
        self,
        event: JobQueued,
        webhook: Mapping[FieldT, EncodableT] | None = None,
        quota: Quota | None = None,
    ) -> Job | Lack:
        """`create_all` of one job."""
        made = await self.create_all([event], webhook, quota)
        return made if isinstance(made, Lack) else made[0]

    async def create_all(
        self,
        events: Sequence[JobQueued],
        webhook: Mapping[FieldT, EncodableT] | None = None,
        quota: Quota | None = None,
    ) -> list[Job] | Lack:
        """Write new records of one key with their first events, all of them whole, or none.

        Args:
            webhook: that the request named, as it is stored.
            quota: of the key that asks for them; answers what lacks if that has no place for all jobs.
        """
        jobs = [begin(event) for event in events]
        answer = await write_all(self._redis, jobs, events, webhook, quota or Quota())
        if isinstance(answer, Lack):
            for job in jobs:
                await self.delete(job.id, job.request.parent, job.key_id)
            return answer
        return [await self._finish(*each) for each in zip(jobs, answer, strict=True)]

    async def get(self, job_id: str) -> Job | None:
        """The record of a job, None if there is none.

        Raises:
            JobUnreadableError: it cannot be read.
        """
        (job,) = await self.get_many([job_id])
        if isinstance(job, UnreadableRecordError):
            raise JobUnreadableError(job_id)
        return job

    async def get_many(self, job_ids: Sequence[str]) -> list[Job | UnreadableRecordError | None]:
        """The records of these jobs, None where there is none, an error where it cannot be read."""
        if not job_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(job_key(job_id), RECORD)
            rows = cast(list[_Row], await pipeline.execute(raise_on_error=False))
        return [self._read(job_id, row) for job_id, row in zip(job_ids, rows, strict=True)]

    async def cancel(self, job: Job, reason: str) -> Job:
        """Ask for a cancellation; a job that no worker has yet ends here."""
        if job.status in TERMINAL:
            return job
        await self._redis.set(cancel_key(job.id), "1", ex=_CANCEL_LIFETIME_S)
        while job.status == "queued":
            event = _canceled(job, reason)
            if await self._append(job, event):
                break
            job = await self._reread(job)
        return await self._reread(job)

    async def expire(self, job: Job) -> Job:
        """End a job that has missed its deadline and that no worker has, unless one has just taken it."""
        status = job.status
        while job.status == status:
            event = _expired(job)
            if await self._append(job, event):
                break
            job = await self._reread(job)
        return await self._reread(job)

    async def ask_to_expire(self, job: Job) -> None:
        """Ask the worker that has a job to stop it, since it has missed its deadline."""
        await self._redis.set(cancel_key(job.id), EXPIRED, ex=_CANCEL_LIFETIME_S, nx=True)

    async def list_due(self) -> list[str]:
        """Jobs whose deadline has passed, as it was told last; some of them at a time."""
        try:
            members = cast(
                list[bytes],
                await self._redis.zrangebyscore(  # pyright: ignore[reportUnknownMemberType]
                    DEADLINES_KEY, "-inf", time.time(), start=0, num=_DUE_AT_ONCE
                ),
            )
        except RedisError as error:  # it is rebuilt from the records
            require_wrong_type(error)
            return []
        if unknown := [member for member in members if self._read_id(member) is None]:
            await self._redis.zrem(DEADLINES_KEY, *unknown)
        return list(filter(None, map(read_id, members)))

    async def set_deadline(self, job_id: str, deadline: float | None) -> None:
        """Look at the job again then, or never."""
        if deadline is None:
            await self._redis.zrem(DEADLINES_KEY, job_id)
        else:
            await self._redis.zadd(DEADLINES_KEY, {job_id: deadline})

    async def list_active(self) -> list[str]:
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(ACTIVE_KEY))
        return sorted(filter(None, map(self._read_id, members)))

    async def forget_active(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            await self._redis.srem(ACTIVE_KEY, *job_ids)

    async def list_older(
        self, before: tuple[float, str] | None, count: int, key_id: str = ""
    ) -> list[tuple[float, str]]:
        """Creation time and id of jobs that come after `before`, newest first.

        Equal times are ordered by id, downwards, as Redis does.

        Args:
            key_id: of the API key whose jobs these are; empty: all jobs.
        """
        top = "+inf" if before is None else repr(before[0])
        return await self._scan(jobs_of_key(key_id), top, "-inf", before, count, newest_first=True)

    async def list_newer(
        self, after: tuple[float, str] | None, until: float, count: int
    ) -> list[tuple[float, str]]:
        """Creation time and id of jobs created up to `until` that come after `after`, oldest first."""
        bottom = "-inf" if after is None else repr(after[0])
        return await self._scan(JOBS_KEY, bottom, repr(until), after, count, newest_first=False)

    async def list_children(self, job_id: str) -> list[str]:
        """Jobs that were derived from this one, oldest first; none until a damaged list is rebuilt."""
        try:
            members = await cast(Awaitable[set[bytes]], self._redis.smembers(children_key(job_id)))
        except RedisError as error:
            require_wrong_type(error)
            self.unreadable.tell("index", children_key(job_id), error)
            self.lost_children.add(job_id)
            return []
        return sorted(filter(None, map(self._read_id, members)))

    async def delete(self, job_id: str, parent: str | None = None, key_id: str = "") -> None:
        """Delete an ended job; the streams of its log end when they find no record.

        Args:
            parent: that it was derived from; its children are that one's from now on, as they share its files.
            key_id: of the API key that made it.
        """
        own = (job_key, events_key, previews_key, cancel_key, children_key, deliveries_key)
        (heir,) = await self.get_many([parent]) if parent else (None,)
        children = await self.list_children(job_id) if isinstance(heir, Job) else []
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.delete(*(key(job_id) for key in own), webhook_key("job", job_id))
            if parent is not None:
                transaction.eval(CHANGE_SET, 1, children_key(parent), "SREM", job_id)
                for child in children:
                    transaction.eval(CHANGE_SET, 1, children_key(parent), "SADD", child)
            for index in {JOBS_KEY, jobs_of_key(key_id)}:
                transaction.zrem(index, job_id)
            transaction.srem(ACTIVE_KEY, job_id)
            transaction.zrem(DEADLINES_KEY, job_id)
            await transaction.execute()

    async def _scan(
        self,
        index: str,
        first: str,
        last: str,
        passed: tuple[float, str] | None,
        count: int,
        *,
        newest_first: bool,
    ) -> list[tuple[float, str]]:
        """Rows of an index with scores from `first` to `last`, but only those behind `passed`."""
        found: list[tuple[float, str]] = []
        offset = 0
        while len(found) < count:
            answer = await self._redis.zrange(  # pyright: ignore[reportUnknownMemberType]
                index, first, last, newest_first, True, byscore=True, offset=offset, num=count
            )
            rows = [
                (score, job_id)
                for member, score in cast(list[tuple[bytes, float]], answer)
                if (job_id := self._read_id(member)) is not None
            ]
            found += [
                row for row in rows if passed is None or (row < passed if newest_first else row > passed)
            ]
            offset += len(answer)
            if len(answer) < count:
                break
        return found[:count]

    def _read(self, job_id: str, row: _Row) -> Job | UnreadableRecordError | None:
        try:
            if isinstance(row, RedisError):
                require_wrong_type(row)
                raise UnreadableRecordError(str(row))
            return read_job(job_id, row)
        except UnreadableRecordError as error:
            self.unreadable.tell("job", job_id, error)
            return error

    def _read_id(self, member: bytes) -> str | None:
        job_id = read_id(member)
        if job_id is None:
            self.unreadable.tell("index", member, "this is no id of a job")
        return job_id

    async def _append(self, job: Job, event: DurableEvent) -> bool:
        """Write one event on top of the state it was made for; False if another writer came first."""
        keys, arguments = append_event(apply(job, event), event, after=job.seq)
        answer = await cast(Awaitable[bytes], self._redis.eval(APPEND_EVENT, len(keys), *keys, *arguments))
        return answer not in (b"stale", b"fenced")

    async def _finish(self, job: Job, answer: bytes) -> Job:
        if answer == b"stale":  # written already: the connection broke before the answer came
            return await self._reread(job)
        return job.model_copy(update={"seq": answer.decode()})

    async def _reread(self, job: Job) -> Job:
        current = await self.get(job.id)
        if current is None:  # an operator emptied Redis in between
            raise JobNotFoundError(job.id)
        return current


def read_time(job_id: str) -> float:
    """When the id was drawn; 0 if it is not one of ours."""
    try:
        return int(job_id[:12], 16) / 1000
    except ValueError:
        return 0.0


def _canceled(job: Job, reason: str) -> JobCanceled:
    return JobCanceled(job_id=job.id, attempt=job.attempt, ts=time.time(), data=CanceledData(reason=reason))


def _expired(job: Job) -> JobExpired:
    data = ExpiredData(error=explain_expiry(job))
    return JobExpired(job_id=job.id, attempt=job.attempt, ts=time.time(), data=data)
