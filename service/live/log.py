"""Reads the durable log of one job for one client."""

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.answers import Snapshot
from api_schemas.job import TERMINAL, Job, rebuild_end
from api_schemas.stored import UnreadableRecordError
from api_schemas.stored import read_event as stored_event
from api_schemas.wire import events_key
from service.errors import JobUnreadableError
from service.job_store import JobStore
from service.messages import START, EventMessage, before, order, read_event, show_event
from service.unreadable import require_wrong_type

# A client that stops reading holds one: of 500 entries 100 of them held 45 MiB.
_PAGE: Final = 100
Row = tuple[bytes, dict[bytes, bytes]]


class JobLog:
    """Each event once and in order, from the log or from the live stream, whichever comes first.

    Args:
        job: the record when the client came.
        after: the last event the client has seen.
    """

    def __init__(self, redis: Redis, jobs: JobStore, job: Job, after: str | None) -> None:
        self._redis = redis
        self._jobs = jobs
        self._job_id = job.id
        # An id from the future comes from a log that Redis lost; the client continues from the current end.
        self._cursor = min(after or START, job.seq, key=order)
        self.ended = job.status in TERMINAL and self._cursor == job.seq

    async def replay(self) -> AsyncIterator[EventMessage]:
        """All stored events after the cursor, or a snapshot and its event if some were trimmed."""
        while not self.ended:
            first, page = await self._read()
            if self._is_trimmed(first):
                snapshot = await self._snapshot()
                if snapshot is None:
                    return
                yield snapshot
                _, page = await self._read()
                self.ended = self.ended and not page
            for seq, fields in page:
                message = await self._read_message(seq.decode(), fields)
                if message is not None:
                    yield message
            if len(page) < _PAGE:
                return

    def accept(self, events: Iterable[EventMessage]) -> Iterator[EventMessage]:
        """Those of them that are not known already.

        Raises:
            LogGapError: events between the cursor and the next one did not come; replay them.
        """
        for event in events:
            if order(event.seq) <= order(self._cursor):
                continue
            if order(event.previous) != order(self._cursor):
                raise LogGapError
            self._advance(event)
            yield event

    async def _read_message(self, seq: str, fields: dict[bytes, bytes]) -> EventMessage | None:
        """The next event; None if it cannot be read. That of the job's end is then made from its record."""
        try:
            message = read_event(seq, fields[b"event"])
        except (KeyError, UnreadableRecordError) as error:
            self._jobs.unreadable.tell("event", self._job_id, f"{seq}: {error!r}")
            self._cursor, job = seq, await self._find_job()
            end = rebuild_end(job) if job is not None and job.seq == seq else None
            if end is None:
                return None
            message = show_event(seq, end)
        self._advance(message)
        return message

    async def _find_job(self) -> Job | None:
        try:
            return await self._jobs.get(self._job_id)
        except JobUnreadableError:
            return None

    def _advance(self, message: EventMessage) -> None:
        self._cursor = message.seq
        self.ended = message.is_terminal

    async def _read(self) -> tuple[Row | None, list[Row]]:
        """The oldest entry that is kept, and a page after the cursor."""
        key = events_key(self._job_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xrange(key, "-", "+", 1)
            pipeline.xrange(key, f"({self._cursor}", "+", _PAGE)
            answers = await pipeline.execute(raise_on_error=False)
        for error in answers:
            if isinstance(error, RedisError):
                require_wrong_type(error)
                self._jobs.unreadable.tell("event", key, error)
                return None, []
        first, page = cast(tuple[list[Row], list[Row]], answers)
        return (first[0] if first else None), page

    def _is_trimmed(self, first: Row | None) -> bool:
        if first is None:
            return True
        return not _is_first(first[1]) and order(first[0].decode()) > order(self._cursor)

    async def _snapshot(self) -> EventMessage | None:
        job = await self._find_job()
        if job is None:  # the record was deleted: there will be no more events
            self.ended = True
            return None
        if order(job.seq) <= order(self._cursor):
            return None
        self._cursor = before(job.seq)
        self.ended = job.status in TERMINAL
        snapshot = Snapshot(seq=job.seq, job_id=job.id, data=job)
        return EventMessage(snapshot.type, "", snapshot.model_dump_json())


def _is_first(fields: dict[bytes, bytes]) -> bool:
    try:
        return stored_event(fields[b"event"]).type == "job.queued"
    except (KeyError, UnreadableRecordError):
        return False


class LogGapError(Exception):
    """Events of this job are missing from the live stream."""
