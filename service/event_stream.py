"""Streams a job's events: those in the log, then live ones, without gaps or duplicates."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, suppress
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.job import Job
from api_schemas.preview_frames import unpack_preview
from api_schemas.wire import previews_key
from service.job_store import JobStore
from service.live.hub import LiveHub, join_frames
from service.live.log import JobLog, LogGapError
from service.live.subscription import Delivery
from service.messages import Idle, Message, PreviewMessage, Restarting
from service.unreadable import require_wrong_type

_SCAN_COUNT: Final = 64


class EventStream:
    """Joins the durable log, the stored previews and the live stream."""

    def __init__(self, redis: Redis, hub: LiveHub, jobs: JobStore, ping_interval_s: float) -> None:
        self._redis = redis
        self._hub = hub
        self._jobs = jobs
        self._ping_interval_s = ping_interval_s

    async def follow(
        self, job: Job, after: str | None, *, previews: bool, holder: tuple[str, str]
    ) -> AsyncGenerator[Message]:
        """Everything after event `after`; ends after the terminal event, when the server stops, or with its key.

        Args:
            holder: of the API key that asks: key id and digest of the secret, both empty where no keys are required.
        """
        log = JobLog(self._redis, self._jobs, job, after)
        with self._hub.subscribe(job.id, previews=previews, holder=holder) as subscription:
            # Stored previews come first, so that a late viewer sees the canvas before the log is replayed.
            if previews and not log.ended and job.status != "succeeded":
                async for message in self._stored_previews(job.id):
                    yield message
            async for message in log.replay():
                yield message
            while not log.ended:
                delivery = await subscription.take(self._ping_interval_s)
                async for message in self._pass_on(job.id, log, delivery):
                    yield message
                if delivery.closed and not log.ended:
                    yield Restarting()
                    return

    async def wait(self, job: Job, timeout_s: float, holder: tuple[str, str]) -> None:
        """Return when the job has ended, its key is accepted no more, the server stops, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(timeout_s),
                aclosing(self.follow(job, job.seq, previews=False, holder=holder)) as news,
            ):
                async for _ in news:
                    pass

    async def _pass_on(self, job_id: str, log: JobLog, delivery: Delivery) -> AsyncIterator[Message]:
        if delivery.stale:
            async for message in self._stored_previews(job_id):
                yield message
        for batch in delivery.previews:
            yield PreviewMessage(batch)
        behind = delivery.behind
        try:
            for message in log.accept(delivery.events):
                yield message
        except LogGapError:
            behind = True
        if behind or delivery.is_empty:
            # If a live entry was lost unnoticed, it is read from the log here.
            async for message in log.replay():
                yield message
            if not log.ended:
                yield Idle()

    def _check_frames(self, job_id: str, frames: dict[bytes, bytes]) -> Iterator[bytes]:
        for place, frame in frames.items():
            try:
                unpack_preview(frame)
                yield frame
            except ValueError as error:
                self._jobs.unreadable.tell("preview", job_id, f"{place!a}: {error}")

    async def _stored_previews(self, job_id: str) -> AsyncIterator[PreviewMessage]:
        """The newest frame of each cell, in pieces: a large canvas' frames may be tens of megabytes."""
        cursor = 0
        while True:
            try:
                cursor, frames = await cast(
                    Awaitable[tuple[int, dict[bytes, bytes]]],
                    self._redis.hscan(previews_key(job_id), cursor, count=_SCAN_COUNT),
                )
            except RedisError as error:
                require_wrong_type(error)
                self._jobs.unreadable.tell("preview", job_id, error)
                return
            for batch in join_frames(self._check_frames(job_id, frames)):
                yield PreviewMessage(batch)
            if cursor == 0:
                return
