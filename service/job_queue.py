"""The queues of waiting jobs, one per model. RQ functions are named by string, so no worker code is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from anyio import to_thread
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job as QueuedJob
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from api_schemas.wire import RUN_JOB, model_of_queue, queue_name, read_id
from service.unreadable import UnreadableRecords, require_wrong_type

_ENDED = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.STOPPED)
Presence = Literal["present", "lost", "unlisted"]


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs of one model that wait, and that a worker holds."""

    waiting: int
    running: int


class JobQueue:
    """RQ supports blocking Redis clients only, so what it does runs in a thread; its lists are read directly."""

    def __init__(
        self,
        redis: AsyncRedis,
        blocking_redis: Redis,
        unreadable: UnreadableRecords,
        *,
        timeout_s: int,
        retries: int,
    ) -> None:
        self._async_redis = redis
        self._redis = blocking_redis
        self._unreadable = unreadable
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
            answers = cast(list[int | Exception | None], await pipeline.execute(raise_on_error=False))
        return [_read_position(answer) for answer in answers]

    async def list_waiting(self) -> list[str]:
        """Ids of all jobs that wait, for whichever model."""
        return await to_thread.run_sync(self._list_waiting)

    async def names(self) -> list[str]:
        """Of the queues that ever held a job of the service."""
        return await to_thread.run_sync(lambda: [queue.name for queue in self._queues().values()])

    def _queue(self, model: str) -> Queue:
        queue = self._known_queues.get(model)
        if queue is None:  # kept, since each new one asks the server for its version
            # With pickle, write access to Redis would allow running code in the worker.
            queue = Queue(queue_name(model), connection=self._redis, serializer=JSONSerializer)
            self._known_queues[model] = queue
        return queue

    def _queues(self) -> dict[str, Queue]:
        """Every queue that ever held a job of the service, by model."""
        try:
            keys = cast(set[bytes], self._redis.smembers(Queue.redis_queues_keys))
        except RedisError as error:
            require_wrong_type(error)
            keys = set[bytes]()
        models = {model for key in keys if (model := self._read_model(key)) is not None}
        return {model: self._queue(model) for model in models}

    def _read_model(self, key: bytes) -> str | None:
        try:
            return model_of_queue(key.decode().removeprefix(Queue.redis_queue_namespace_prefix))
        except UnicodeDecodeError as error:
            self._unreadable.tell("index", key, error)
            return None

    def _measure(self) -> dict[str, Load]:
        return {
            model: Load(len(queue), queue.started_job_registry.get_job_count(cleanup=False))
            for model, queue in self._queues().items()
        }

    def _list_waiting(self) -> list[str]:
        queues = self._queues().values()
        members = [member for queue in queues for member in self._list(queue.key)]
        return [job_id for member in members if (job_id := read_id(member)) is not None]

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
        status = known.get_status(refresh=False)  # as fetched: it may be deleted meanwhile
        if status == JobStatus.CREATED:  # what RQ says of one without a status, which it is just deleting
            return "lost"
        if status != JobStatus.QUEUED:
            return "unlisted" if status in _ENDED else "present"
        # Popped but not yet started, it is in the intermediate list, which RQ's own workers clean.
        queue = self._queue(model)
        waits = queue.get_job_position(job_id) is not None
        taken = self._list(queue.intermediate_queue.key)
        return "present" if waits or job_id.encode() in taken else "unlisted"

    def _list(self, key: str) -> list[bytes]:
        return cast(list[bytes], self._redis.lrange(key, 0, -1))

    def _revive(self, job_id: str, model: str) -> bool:
        self._forget(job_id)
        self._queue(model).remove(job_id)
        return self._enqueue(job_id, model)

    def _forget(self, job_id: str) -> None:
        known = self._fetch(job_id)
        if known is not None:
            self._delete(known)

    def _remove(self, job_id: str) -> None:
        known = self._fetch(job_id)
        if known is not None and known.get_status(refresh=False) in (JobStatus.CREATED, JobStatus.QUEUED):
            self._delete(known)

    def _delete(self, known: QueuedJob) -> None:
        try:
            known.delete()
        except InvalidJobOperation:  # RQ found no status: what is left of it is of no use to anyone
            self._redis.delete(known.key)
        except RedisError as error:
            require_wrong_type(error)
            self._redis.delete(known.key, known.execution_registry.key)

    def _fetch(self, job_id: str) -> QueuedJob | None:
        try:
            return QueuedJob.fetch(  # pyright: ignore[reportUnknownMemberType]
                job_id, connection=self._redis, serializer=JSONSerializer
            )
        except NoSuchJobError:
            return None
        except RedisError as error:
            require_wrong_type(error)
            self._drop(job_id, error)
        except Exception as error:  # RQ raises whatever its parts do
            self._drop(job_id, error)
        return None

    def _drop(self, job_id: str, error: Exception) -> None:
        """Delete what RQ has of a job, so that it is lost there and enqueued again: its record has all of it."""
        self._unreadable.tell("queued", job_id, repr(error))
        self._redis.delete(QueuedJob.key_for(job_id))


def _read_position(answer: int | Exception | None) -> int | None:
    """A queue that is of another type has no positions until it is repaired."""
    if isinstance(answer, Exception):
        require_wrong_type(answer)
        return None
    return answer
