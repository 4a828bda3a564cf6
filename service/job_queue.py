"""The line of jobs that wait for a worker: RQ, by dotted name, so that no worker code is loaded here."""

from functools import partial
from typing import Literal

from anyio import to_thread
from redis import Redis
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job as QueuedJob
from rq.serializers import JSONSerializer

from api_schemas.wire import QUEUE_NAME, RUN_JOB

Presence = Literal["present", "lost", "adrift"]


class JobQueue:
    """RQ speaks blocking Redis only, so each call runs in a thread."""

    def __init__(self, redis: Redis, *, timeout_s: int, retries: int) -> None:
        self._redis = redis
        # With pickle, whoever can write to Redis could run code in the worker.
        self._queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
        self._timeout_s = timeout_s
        self._retries = retries

    async def enqueue(self, job_id: str) -> bool:
        """Put a job at the end of the line; False if it is known there already."""
        return await to_thread.run_sync(self._enqueue, job_id)

    async def presence(self, job_id: str) -> Presence:
        """Whether the job waits or runs, is unknown here, or is known but in no list of live jobs."""
        return await to_thread.run_sync(self._presence, job_id)

    async def revive(self, job_id: str) -> bool:
        """Enqueue a job afresh, whatever is left of it; False if someone else just did."""
        return await to_thread.run_sync(self._revive, job_id)

    async def remove(self, job_id: str) -> None:
        """Take a job out of the line; nothing happens if it is not there."""
        await to_thread.run_sync(self._remove, job_id)

    async def count(self) -> int:
        """Jobs that wait."""
        return await to_thread.run_sync(len, self._queue)

    async def count_running(self) -> int:
        """Jobs that a worker holds."""
        return await to_thread.run_sync(
            partial(self._queue.started_job_registry.get_job_count, cleanup=False)
        )

    async def position(self, job_id: str) -> int | None:
        """Jobs before this one, None if it does not wait."""
        return await to_thread.run_sync(self._queue.get_job_position, job_id)

    async def list_waiting(self) -> list[str]:
        return await to_thread.run_sync(self._queue.get_job_ids)

    def _enqueue(self, job_id: str) -> bool:
        try:
            self._queue.enqueue(  # pyright: ignore[reportUnknownMemberType]
                RUN_JOB,
                job_id,
                job_id=job_id,
                job_timeout=self._timeout_s,
                # Without Retry, RQ drops a job whose worker died.
                retry=Retry(max=self._retries) if self._retries else None,
                result_ttl=0,
                unique=True,
            )
        except DuplicateJobError:
            return False
        return True

    def _presence(self, job_id: str) -> Presence:
        known = self._fetch(job_id)
        if known is None:
            return "lost"
        if not known.is_queued:
            ended = known.is_finished or known.is_failed or known.is_canceled or known.is_stopped
            return "adrift" if ended else "present"
        # Popped but not yet started, it is in the intermediate list, which RQ's own workers clean.
        waits = self._queue.get_job_position(job_id) is not None
        return "present" if waits or job_id in self._queue.intermediate_queue.get_job_ids() else "adrift"

    def _revive(self, job_id: str) -> bool:
        known = self._fetch(job_id)
        if known is not None:
            known.delete()
        return self._enqueue(job_id)

    def _remove(self, job_id: str) -> None:
        known = self._fetch(job_id)
        if known is not None and known.is_queued:
            known.delete()

    def _fetch(self, job_id: str) -> QueuedJob | None:
        try:
            return QueuedJob.fetch(  # pyright: ignore[reportUnknownMemberType]
                job_id, connection=self._redis, serializer=JSONSerializer
            )
        except NoSuchJobError:
            return None
