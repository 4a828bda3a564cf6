"""Cleans up what dead workers left in RQ's registries."""

import logging
import time
from typing import cast

from redis import Redis
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
from rq.worker_registration import clean_worker_registry

from api_schemas.errors import JobError
from api_schemas.events import FailedData
from api_schemas.wire import janitor_key
from worker.errors import FencedError
from worker.events import EventLog

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

    def clean(self, worker: BaseWorker) -> None:
        """Requeue jobs whose lease has run out; stock RQ does it between jobs, and so do we."""
        worker.last_cleaned_at = now()
        if not self._redis.set(self._lock_key, self._worker, nx=True, px=self._lock_ms):
            return
        clean_registries(self._queue)
        clean_worker_registry(self._queue)
        self._requeue_stranded()
        self._fail_exhausted()

    def runs_elsewhere(self, job_id: str, own: Execution) -> bool:
        """Whether another execution of this job holds a lease that has not run out."""
        leases = cast(
            list[bytes],
            self._redis.zrangebyscore(  # pyright: ignore[reportUnknownMemberType]
                self._started.key, time.time(), "+inf"
            ),
        )
        others = [lease.decode().split(":") for lease in leases]
        return any(job == job_id and execution != own.id for job, execution in others)

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
