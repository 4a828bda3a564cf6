"""The queues of waiting jobs, one per model. RQ functions are named by string, so no worker code is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from anyio import to_thread
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job as QueuedJob
from rq.serializers import JSONSerializer

from api_schemas.wire import RUN_JOB, model_of_queue, queue_name

Presence = Literal["present", "lost", "unlisted"]


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs of one model that wait, and that a worker holds."""

    waiting: int
    running: int


class JobQueue:
    """RQ supports blocking Redis clients only, so what it does runs in a thread; its lists are read directly."""

    def __init__(self, redis: AsyncRedis, blocking_redis: Redis, *, timeout_s: int, retries: int) -> None:
        self._async_redis = redis
        self._redis = blocking_redis
        self._known_queues: dict[str, Queue] = {}
        self._timeout_s = timeout_s
        self._retries = retries

    async def enqueue(self, job_id: str, model: str) -> bool:
        """Append a job to its model's queue; False if it is there already."""
        return await to_thread.run_sync(self._enqueue, job_id, model)

    async def presence(self, job_id: str, model: str) -> Presence:
        """Whether the job waits or runs, is unknown here, or is known but in no list of live jobs."""
        return await to_thread.run_sync(self._presence, job_id, model)

    async def revive(self, job_id: str, model: str) -> bool:
        """Enqueue a job again, whatever state RQ has of it; False if another process just did."""
        return await to_thread.run_sync(self._revive, job_id, model)

    async def remove(self, job_id: str) -> None:
        """Remove a job from its queue; nothing happens if it is not there."""
        await to_thread.run_sync(self._remove, job_id)

    async def forget(self, job_id: str) -> None:
        """Delete what RQ still stores about an ended job."""
        await to_thread.run_sync(self._forget, job_id)

    async def count(self, model: str) -> int:
        """Jobs that wait for this model."""
        return await self._async_redis.llen(self._queue(model).key)

    async def measure(self) -> dict[str, Load]:
        """What waits and runs, by model."""
        return await to_thread.run_sync(self._measure)

    async def find_positions(self, jobs: Sequence[tuple[str, str]]) -> list[int | None]:
        """Number of jobs ahead of each of these, (id, model), None where it is not waiting; in one call."""
        if not jobs:
            return []
        async with self._async_redis.pipeline(transaction=False) as pipeline:
            for job_id, model in jobs:
                # From the end, where those are that are asked for most: in a list and right after a POST.
                pipeline.lpos(self._queue(model).key, job_id, rank=-1)
            return cast(list[int | None], await pipeline.execute())

    async def list_waiting(self) -> list[str]:
        """Ids of all jobs that wait, for whichever model."""
        return await to_thread.run_sync(self._list_waiting)

    def _queue(self, model: str) -> Queue:
        queue = self._known_queues.get(model)
        if queue is None:  # kept, since each new one asks the server for its version
            # With pickle, write access to Redis would allow running code in the worker.
            queue = Queue(queue_name(model), connection=self._redis, serializer=JSONSerializer)
            self._known_queues[model] = queue
        return queue

    def _queues(self) -> dict[str, Queue]:
        """Every queue that ever held a job of the service, by model."""
        known = Queue.all(  # pyright: ignore[reportUnknownMemberType]
            connection=self._redis, serializer=JSONSerializer
        )
        return {model: queue for queue in known if (model := model_of_queue(queue.name)) is not None}

    def _measure(self) -> dict[str, Load]:
        return {
            model: Load(len(queue), queue.started_job_registry.get_job_count(cleanup=False))
            for model, queue in self._queues().items()
        }

    def _list_waiting(self) -> list[str]:
        return [job_id for queue in self._queues().values() for job_id in queue.get_job_ids()]

    def _enqueue(self, job_id: str, model: str) -> bool:
        try:
            self._queue(model).enqueue(  # pyright: ignore[reportUnknownMemberType]
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

    def _presence(self, job_id: str, model: str) -> Presence:
        known = self._fetch(job_id)
        if known is None:
            return "lost"
        try:
            return self._locate(known, self._queue(model))
        except InvalidJobOperation:  # it ended since it was fetched, and RQ deleted it
            return "lost"

    def _locate(self, known: QueuedJob, queue: Queue) -> Presence:
        if not known.is_queued:
            ended = known.is_finished or known.is_failed or known.is_canceled or known.is_stopped
            return "unlisted" if ended else "present"
        # Popped but not yet started, it is in the intermediate list, which RQ's own workers clean.
        waits = queue.get_job_position(known.id) is not None
        return "present" if waits or known.id in queue.intermediate_queue.get_job_ids() else "unlisted"

    def _revive(self, job_id: str, model: str) -> bool:
        self._forget(job_id)
        return self._enqueue(job_id, model)

    def _forget(self, job_id: str) -> None:
        known = self._fetch(job_id)
        if known is not None:
            self._delete(known)

    def _remove(self, job_id: str) -> None:
        known = self._fetch(job_id)
        if known is not None and self._waits(known):
            self._delete(known)

    def _waits(self, known: QueuedJob) -> bool:
        try:
            return known.is_queued
        except InvalidJobOperation:  # without a status no worker can have it
            return True

    def _delete(self, known: QueuedJob) -> None:
        try:
            known.delete()
        except InvalidJobOperation:  # RQ found no status: what is left of it is of no use to anyone
            self._redis.delete(known.key)

    def _fetch(self, job_id: str) -> QueuedJob | None:
        try:
            return QueuedJob.fetch(  # pyright: ignore[reportUnknownMemberType]
                job_id, connection=self._redis, serializer=JSONSerializer
            )
        except NoSuchJobError:
            return None
