"""Waits for jobs, which go on if nobody does."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from api_schemas.events import Result
from api_schemas.job import TERMINAL, Job
from service.errors import JobFailedError, JobNotFoundError, ResultNeverError, UnavailableError
from service.event_stream import EventStream
from service.job_store import JobStore
from service.messages import Restarting

_RETRY_S: Final = 1


@dataclass(frozen=True, slots=True)
class Waiting:
    """Waits for the ends of jobs, and holds no connection to the queue server meanwhile."""

    events: EventStream
    jobs: JobStore

    async def await_all(self, jobs: Sequence[Job]) -> list[tuple[Job, Result]]:
        """Each with its picture, once all have ended.

        Raises:
            JobFailedError, ResultNeverError: one has none.
            UnavailableError: the server restarts.
        """
        return [await self._await_end(job) for job in jobs]

    async def _await_end(self, job: Job) -> tuple[Job, Result]:
        if job.status not in TERMINAL:
            async with aclosing(self.events.follow(job, job.seq, previews=False)) as messages:
                async for message in messages:
                    if isinstance(message, Restarting):
                        raise restarting(job)
        return await self.read_end(job.id)

    async def read_end(self, job_id: str) -> tuple[Job, Result]:
        """The record of a job that has ended, and its picture.

        Raises:
            JobFailedError, ResultNeverError, JobNotFoundError: it has none.
        """
        job = await self.jobs.get(job_id)
        if job is None:
            raise JobNotFoundError(job_id)
        if job.result is not None:
            return job, job.result
        if job.error is not None:
            raise JobFailedError(f"job {job.id} has failed: {job.error.message}")
        raise ResultNeverError(f"job {job.id} is {job.status} and has no picture")


def restarting(job: Job) -> UnavailableError:
    """To whom waits for this job."""
    return UnavailableError(f"the server restarts; job {job.id} goes on", retry_after_s=_RETRY_S)
