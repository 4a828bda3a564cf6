"""Cleans up what dead workers left in RQ's registries."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import cast

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.registry import (
    FailedJobRegistry,
    StartedJobRegistry,
    clean_registries,  # pyright: ignore[reportUnknownVariableType]
)
from rq.utils import now
from rq.worker import BaseWorker
from rq.worker_registration import WORKERS_BY_QUEUE_KEY, clean_worker_registry

from api_schemas.catalog import ModelCard
from api_schemas.errors import JobError
from api_schemas.events import FailedData
from api_schemas.stored import UnreadableRecordError, read_card, write_card
from api_schemas.wire import MODELS_KEY, SET_ASIDE, UNREADABLE_PREFIX, janitor_key, read_id
from worker.errors import FencedError
from worker.events import EventLog

_LEASE = re.compile(rb"[A-Za-z0-9]+:[A-Za-z0-9]+")  # ids of a job and of its execution
_TOLD = 100
_log = logging.getLogger(__name__)


class Janitor:
    """Gives abandoned jobs back to the queue. Workers of one queue take turns, under a lock that expires.

    RQ's own lock expires after 15 minutes; for so long nobody would clean after a crash.

    Args:
        interval_s: time between two cleanings, by whichever worker.
        start_timeout_s: most time between taking a job and starting it.
    """

    def __init__(
        self, redis: "Redis", queue: Queue, worker: str, interval_s: int, start_timeout_s: float
    ) -> None:
        self._redis = redis
        self._queue = queue
        self._worker = worker
        self._lock_ms = interval_s * 800  # expires before the next cleaning
        self._start_timeout_s = start_timeout_s
        self._lock_key = janitor_key(queue.name)
        self._started = StartedJobRegistry(queue=queue)
        self._stranded_since: dict[str, float] = {}
        self._told: set[str] = set()

    def clean(self, worker: BaseWorker) -> None:
        """Requeue jobs whose lease has run out; stock RQ does it between jobs, and so do we."""
        worker.last_cleaned_at = now()
        if not self._redis.set(self._lock_key, self._worker, nx=True, px=self._lock_ms):
            if self._redis.pttl(self._lock_key) == -1:  # nobody's, since a janitor's expires
                self._redis.delete(self._lock_key)
            return
        for clean in (self._drop_unreadable, self._clean_rq, self._requeue_stranded, self._fail_exhausted):
            self._do(clean)

    def _do(self, clean: Callable[[], None]) -> None:
        """What one cannot read does not keep the others from cleaning."""
        try:
            clean()
        except (RedisConnectionError, RedisTimeoutError):
            raise
        except Exception as error:
            if repr(error) not in self._told:
                _log.exception("not all could be cleaned")
            self._told = {*list(self._told)[-_TOLD:], repr(error)}

    def _clean_rq(self) -> None:
        clean_registries(self._queue)
        clean_worker_registry(self._queue)

    def runs_elsewhere(self, job_id: str, own: Execution) -> bool:
        """Whether another execution of this job holds a lease that has not run out."""
        leases = cast(
            list[bytes],
            self._redis.zrangebyscore(  # pyright: ignore[reportUnknownMemberType]
                self._started.key, time.time(), "+inf"
            ),
        )
        own_lease = f"{job_id}:{own.id}".encode()
        return any(lease.startswith(f"{job_id}:".encode()) and lease != own_lease for lease in leases)

    def forget_lost_executions(self, job: RqJob) -> None:
        """Drop executions of dead workers from a job's own list.

        RQ keeps them there a minute longer than their records, and deleting the job in that minute
        raises ValueError.
        """
        registry = job.execution_registry
        for execution_id in registry.get_execution_ids():
            execution = Execution(execution_id, job.id, self._redis)
            if not self._redis.exists(execution.key):
                self._redis.zrem(registry.key, execution_id)

    def _drop_unreadable(self) -> None:
        """Drop from RQ's lists what is no id: RQ would stop there at every cleaning."""
        redis, name, failed = self._redis, self._queue.name, FailedJobRegistry(queue=self._queue).key
        for lease in _list_members(redis, self._started.key):
            if not _LEASE.fullmatch(lease):
                self._tell_dropped("lease", lease, redis.zrem(self._started.key, lease))
        for member in _list_members(redis, failed):
            if read_id(member) is None:
                self._tell_dropped("failed job", member, redis.zrem(failed, member))
        taken = self._queue.intermediate_queue.key
        for member in cast(list[bytes], redis.lrange(taken, 0, -1)):
            if read_id(member) is None:
                self._tell_dropped("taken job", member, redis.lrem(taken, 0, cast(str, member)))
        workers = WORKERS_BY_QUEUE_KEY % name
        for member in cast(set[bytes], redis.smembers(workers)):
            if not member.isascii():
                self._tell_dropped("worker", member, redis.srem(workers, member))

    def _tell_dropped(self, what: str, member: bytes, count: object) -> None:
        if count:  # another janitor may have been first
            _log.warning("a %s of queue %s is no id and is dropped: %.100a", what, self._queue.name, member)

    def _requeue_stranded(self) -> None:
        """Requeue jobs that a worker took and did not start. RQ would wait a minute, and use up a retry."""
        intermediate = self._queue.intermediate_queue
        started = {job_id for job_id, _ in self._started.get_job_and_execution_ids(cleanup=False)}
        stranded = set(intermediate.get_job_ids()) - started
        clock = time.monotonic()
        self._stranded_since = {job_id: self._stranded_since.get(job_id, clock) for job_id in stranded}
        for job_id, since in self._stranded_since.items():
            if clock - since > self._start_timeout_s:
                self._push_back(intermediate.key, job_id)

    def _push_back(self, intermediate_key: str, job_id: str) -> None:
        if self._queue.fetch_job(job_id) is None:  # RQ has nothing of it; the service enqueues it if need be
            self._redis.lrem(intermediate_key, 0, job_id)
            return
        _log.warning("job %s was taken but never started", job_id)
        with self._redis.pipeline() as pipeline:  # pyright: ignore[reportUnknownMemberType]
            pipeline.lrem(intermediate_key, 1, job_id)
            pipeline.lpush(self._queue.key, job_id)
            pipeline.execute()

    def _fail_exhausted(self) -> None:
        """Write the end of jobs that RQ has given up; else they would be `processing` for ever."""
        for job_id in FailedJobRegistry(queue=self._queue).get_job_ids():
            job = self._queue.fetch_job(job_id)
            if job is not None and job.get_status() == JobStatus.FAILED:
                self._fail(job_id)

    def _fail(self, job_id: str) -> None:
        error = JobError(
            code="too_many_attempts", message="every worker that took the job was lost", retryable=False
        )
        try:
            EventLog(self._redis, job_id).append(FailedData(error=error))
        except FencedError:
            return  # it has ended already
        except UnreadableRecordError:
            return  # who took the job has said so


def _list_members(redis: "Redis", key: str) -> list[bytes]:
    return cast(list[bytes], redis.zrange(key, 0, -1))  # pyright: ignore[reportUnknownMemberType]


def publish_card(redis: "Redis", card: ModelCard) -> None:
    """Publish a card, unless the service has it already and can read it."""
    known = cast(bytes | None, redis.hget(MODELS_KEY, card.name))
    try:
        if known is not None:
            read_card(known)
            return
    except UnreadableRecordError as error:
        _log.warning("the card of model %s is published again: %s", card.name, error)
    redis.hset(MODELS_KEY, card.name, write_card(card))


def set_aside(redis: "Redis", types: Mapping[str, str]) -> None:
    """Move keys of another type than this out of the way; the service rebuilds what was lost with them."""
    for key in cast(list[bytes], redis.eval(SET_ASIDE, len(types), *types, *types.values())):
        _log.warning("%s is of another type; it is now %s%s", key.decode(), UNREADABLE_PREFIX, key.decode())
