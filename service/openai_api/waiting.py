"""Waits for jobs, which go on if nobody does."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from api_schemas.events import Result
from api_schemas.job import TERMINAL, Job
from service.errors import (
    JobCanceledError,
    JobFailedError,
    JobNotFoundError,
    ResultNeverError,
    UnavailableError,
)
from service.event_stream import EventStream
from service.job_store import JobStore
from service.keys.store import Holder, KeyStore
from service.messages import Message, Restarting

_RETRY_S: Final = 1


@dataclass(frozen=True, slots=True)
class Waiting:
    """Waits for the ends of jobs, and holds no connection to the queue server meanwhile.

    Args:
        holder: of the API key that asks, with which the wait ends.
    """

    events: EventStream
    jobs: JobStore
    keys: KeyStore
    holder: Holder

    async def await_all(self, jobs: Sequence[Job]) -> list[tuple[Job, Result]]:
        """Each with its picture, once all have ended.

        Raises:
            JobFailedError, JobCanceledError, ResultNeverError: one has none.
            UnauthenticatedError: the key is accepted no more.
            UnavailableError: the server restarts.
        """
        ended = [await self._await_end(job) for job in jobs]
        await self.require_key()
        return ended

    async def follow(self, job: Job, after: str | None) -> AsyncGenerator[Message]:
        """What happens to the job until it has ended.

        Raises:
            UnauthenticatedError, UnavailableError: as `await_all`.
        """
        messages = self.events.follow(job, after, previews=False, holder=self.holder)
        async with aclosing(messages):
            async for message in messages:
                if isinstance(message, Restarting):
                    await self.require_key()
                    raise UnavailableError(
                        f"the server restarts; job {job.id} goes on", retry_after_s=_RETRY_S
                    )
                yield message

    async def require_key(self) -> None:
        """
        Raises:
            UnauthenticatedError: the key is accepted no more.
        """
        await self.keys.require(self.holder)

    async def _await_end(self, job: Job) -> tuple[Job, Result]:
        if job.status not in TERMINAL:
            async with aclosing(self.follow(job, job.seq)) as messages:
                async for _ in messages:
                    pass
        return await self.read_end(job.id)

    async def read_end(self, job_id: str) -> tuple[Job, Result]:
        """The record of a job that has ended, and its picture.

        Raises:
            JobFailedError, JobCanceledError, ResultNeverError, JobNotFoundError: it has none.
        """
        job = await self.jobs.get(job_id)
        if job is None:
            raise JobNotFoundError(job_id)
        if job.result is not None:
            return job, job.result
        if job.error is not None:
            raise JobFailedError(f"job {job.id} has failed: {job.error.message}")
        if job.status == "canceled":
            raise JobCanceledError(f"job {job.id} was canceled")
        raise ResultNeverError(f"job {job.id} is {job.status} and has no picture")
