"""What RQ keeps: a queue for each model, and a hash for each job. RQ supports blocking Redis clients only.

Its functions are named by string, so no worker code is imported.
"""

import time
from dataclasses import dataclass
from typing import Literal, cast

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as QueuedJob
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from rq.utils import now

from api_schemas.job import Job
from api_schemas.waiting import find_job, name_keys, name_member
from api_schemas.wire import RUN_JOB, model_of_queue, queue_name, read_id
from service.unreadable import UnreadableRecords, require_wrong_type

_ENDED = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.STOPPED)
Presence = Literal["present", "lost", "unlisted"]


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs of one model that wait, and that a worker holds."""

    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that waits.

    Args:
        member: where it waits for a place in RQ's queue; None: it has one.
    """

    job_id: str
    model: str
    member: bytes | None = None


class RqQueues:
    """To be used in a thread."""

    def __init__(self, redis: Redis, unreadable: UnreadableRecords, *, timeout_s: int, retries: int) -> None:
        self._redis = redis
        self._unreadable = unreadable
        self._known: dict[str, Queue] = {}
        self._timeout_s = timeout_s
        self._retries = retries

    def describe(self, job_id: str, model: str) -> dict[str, bytes | str | int]:
        """What RQ keeps of a new job; asks nobody."""
        queued = QueuedJob.create(  # pyright: ignore[reportUnknownMemberType]
            RUN_JOB,
            [job_id],
            id=job_id,
            connection=self._redis,
            # With pickle, write access to Redis would allow running code in the worker.
            serializer=JSONSerializer,
            origin=queue_name(model),
            status=JobStatus.QUEUED,
            timeout=self._timeout_s,
            # Without Retry, RQ drops a job whose worker died.
            retry=Retry(max=self._retries) if self._retries else None,
            result_ttl=0,
        )
        queued.enqueued_at = now()
        return cast(dict[str, bytes | str | int], queued.to_dict())  # pyright: ignore[reportUnknownMemberType]

    def presence(self, job: Job) -> Presence:
        """Whether the job waits or runs, is unknown here, or is known but in no list of live jobs."""
        known = self._fetch(job.id)
        if known is None:
            return "lost"
        status = known.get_status(refresh=False)  # as fetched: it may be deleted meanwhile
        if status == JobStatus.CREATED:  # what RQ says of one without a status, which it is just deleting
            return "lost"
        if status != JobStatus.QUEUED:
            return "unlisted" if status in _ENDED else "present"
        return "present" if self._waits(job) else "unlisted"

    def is_held(self, job: Job) -> bool:
        """Whether a worker has it whose lease has not run out."""
        registry = self._queue(job.request.model).started_job_registry.key
        leases = self._redis.zrangebyscore(registry, time.time(), "+inf")  # pyright: ignore[reportUnknownMemberType]
        return any(lease.startswith(f"{job.id}:".encode()) for lease in cast(list[bytes], leases))

    def clear(self, job_id: str, model: str) -> None:
        """Delete what RQ has of a job, also from its queue."""
        self.forget(job_id)
        self._queue(model).remove(job_id)

    def forget(self, job_id: str) -> None:
        """Delete what RQ still stores about an ended job."""
        known = self._fetch(job_id)
        if known is not None:
            self._delete(known)

    def remove(self, job_id: str) -> None:
        """Remove a job from its queue; nothing happens if it is not there."""
        known = self._fetch(job_id)
        if known is not None and known.get_status(refresh=False) in (JobStatus.CREATED, JobStatus.QUEUED):
            self._delete(known)

    def measure(self) -> dict[str, Load]:
        """What waits and runs, by model."""
        return {model: self._measure(model, queue) for model, queue in self._queues().items()}

    def list_waiting(self) -> list[Entry]:
        """All jobs that wait, for whichever model."""
        return [
            entry for model, queue in self._queues().items() for entry in self._list_entries(model, queue)
        ]

    def list_keys(self) -> dict[str, list[str]]:
        """API keys that have jobs before RQ's queue, by model."""
        found = {model: self._list_range(_name_turns(model)) for model in self._queues()}
        return {
            model: [key.decode(errors="replace") for key in keys] for model, keys in found.items() if keys
        }

    def names(self) -> list[str]:
        """Of the queues that ever held a job of the service."""
        return [queue.name for queue in self._queues().values()]

    def _queue(self, model: str) -> Queue:
        queue = self._known.get(model)
        if queue is None:  # kept, since each new one asks the server for its version
            queue = Queue(queue_name(model), connection=self._redis, serializer=JSONSerializer)
            self._known[model] = queue
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

    def _measure(self, model: str, queue: Queue) -> Load:
        waiting = self._redis.zcard(_name_waiting(model))
        return Load(len(queue) + waiting, queue.started_job_registry.get_job_count(cleanup=False))

    def _list_entries(self, model: str, queue: Queue) -> list[Entry]:
        waiting = self._list_range(_name_waiting(model))
        placed = [Entry(job_id, model) for each in self._list(queue.key) if (job_id := read_id(each))]
        return placed + [
            Entry(job_id, model, member) for member in waiting if (job_id := read_id(find_job(member)))
        ]

    def _waits(self, job: Job) -> bool:
        """In this order: a job that is moved on meanwhile is found where it comes to."""
        if self._redis.zscore(_name_waiting(job.request.model), name_member(job)) is not None:
            return True
        # Popped but not yet started, it is in the intermediate list, which RQ's own workers clean.
        queue = self._queue(job.request.model)
        is_listed = queue.get_job_position(job.id) is not None
        return is_listed or job.id.encode() in self._list(queue.intermediate_queue.key)

    def _list(self, key: str) -> list[bytes]:
        return cast(list[bytes], self._redis.lrange(key, 0, -1))

    def _list_range(self, key: str) -> list[bytes]:
        return cast(list[bytes], self._redis.zrange(key, 0, -1))  # pyright: ignore[reportUnknownMemberType]

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


def _name_waiting(model: str) -> str:
    return name_keys(queue_name(model))[0]


def _name_turns(model: str) -> str:
    return name_keys(queue_name(model))[1]
