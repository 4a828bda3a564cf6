"""The RQ worker, which takes jobs from the queue and never touches torch or a device."""

import logging
import time
from dataclasses import replace

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.timeouts import BaseDeathPenalty
from rq.worker import WorkerStatus

from api_schemas import wire
from worker.context import JOB_CONTEXT, JobContext
from worker.janitor import Janitor
from worker.process.client import EngineProcess
from worker.process.protocol import ModelRefused
from worker.resident import measure_resident
from worker.runner import RELEASED

_POLL_S = 1
_RENEWALS_PER_LEASE = 5
_log = logging.getLogger(__name__)


class _NoDeathPenalty(BaseDeathPenalty):
    """RQ's alarm does not interrupt C code; the runner kills an engine that makes no progress."""

    def setup_death_penalty(self) -> None:
        return

    def cancel_death_penalty(self) -> None:
        return


class EngineWorker(SimpleWorker):
    """A SimpleWorker with short leases, whose one queue is that of its model.

    With two queues RQ takes jobs without an intermediate list, and a worker that is killed between
    taking and starting a job would lose it for ever.
    """

    death_penalty_class = _NoDeathPenalty

    def __init__(self, context: JobContext, engine: EngineProcess, lease_s: int) -> None:
        cleaning_s = max(lease_s // 3, 1)
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            [wire.queue_name(context.card.name)],
            name=context.worker,
            connection=context.redis,
            serializer="json",
            worker_ttl=20,
            maintenance_interval=cleaning_s,
            log_job_description=False,  # it may hold prompts one day
        )
        self._context = replace(context, renew_lease=self._keep_alive)
        self._engine = engine
        self._lease_s = lease_s
        self._janitor = Janitor(
            context.redis, self.queues[0], context.worker, cleaning_s, start_timeout_s=lease_s
        )
        self._current: tuple[RqJob, Execution] | None = None
        self._renewed_at = 0.0

    # Called by RQ -------------------------------------------------------------------------------

    def get_heartbeat_ttl(self, job: RqJob, working_time: float = 0.0) -> int:
        """The lease; RQ's own is job_timeout + 60 and is never renewed."""
        return self._lease_s

    def kill_horse(self, sig: int = 0) -> None:
        """RQ's stop-job command, which arrives on another thread."""
        self._context.cancel.set()

    def request_stop(self, signum: int, frame: object) -> None:
        """Every SIGTERM or SIGINT sets flags, which the loops obey."""
        self._stop_requested = True
        self._context.stop.set()

    def register_death(self) -> None:
        """Also tell the service at once; the key of a killed worker expires."""
        self.connection.delete(self._worker_key(), self._trouble_key(), self._memory_key())
        self.connection.srem(wire.WORKERS_KEY, self.name)
        super().register_death()

    def clean_registries(self) -> None:
        self._janitor.clean(self)

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """Wait for a job; unlike RQ's own loop, notice a stop within a second."""
        self.set_state(WorkerStatus.IDLE)
        while not self._context.stop.is_set():
            try:
                self._maintain()
                found = self.queue_class.dequeue_any(
                    self.queues, _POLL_S, self.connection, self.job_class, self.serializer
                )
                if found is not None:
                    found[0].redis_server_version = self.get_redis_server_version()
                    return found
            except DequeueTimeout:
                continue
            except (RedisConnectionError, RedisTimeoutError) as error:
                _log.warning("waiting for Redis: %s", error)
                self._context.stop.wait(_POLL_S)
        return None

    def perform_job(self, job: RqJob, queue: Queue, execution: Execution) -> bool:
        """Run a job in this worker's context, unless it already runs elsewhere."""
        if self._janitor.runs_elsewhere(job.id, execution):
            _log.info("job %s runs elsewhere", job.id)
            queue.connection.lrem(queue.intermediate_queue_key, 1, job.id)
            self._release(job, execution)
            return False
        self._context.cancel.clear()
        self._current = (job, execution)
        token = JOB_CONTEXT.set(self._context)
        try:
            return super().perform_job(job, queue, execution)
        finally:
            JOB_CONTEXT.reset(token)
            self._current = None

    def _finalize_success(self, job: RqJob, queue: Queue, execution: Execution, return_value: object) -> None:
        if return_value == RELEASED:
            self._release(job, execution)
        else:
            self._janitor.forget_lost_executions(job)
            super()._finalize_success(job, queue, execution, return_value)

    # --------------------------------------------------------------------------------------------

    def _maintain(self) -> None:
        if isinstance(self._engine.check(), ModelRefused):
            self._context.stop.set()
        self._keep_alive()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()

    def _keep_alive(self) -> None:
        """Renew the lease and this worker's keys, a few times a lease."""
        now = time.monotonic()
        if now - self._renewed_at < self._lease_s / _RENEWALS_PER_LEASE:
            return
        self._renewed_at = now
        expiry_s = max(self._lease_s, 15)
        self.connection.set(self._worker_key(), self._context.card.name, ex=expiry_s)
        self.connection.set(self._memory_key(), measure_resident(), ex=expiry_s)
        if self._engine.trouble is not None:
            self.connection.set(self._trouble_key(), self._engine.trouble, ex=expiry_s)
        self.connection.sadd(wire.WORKERS_KEY, self.name)
        if self._current is None:
            self.heartbeat()
        else:
            self.maintain_heartbeats(*self._current)

    def _trouble_key(self) -> str:
        return f"{wire.TROUBLE_KEY_PREFIX}{self.name}"

    def _memory_key(self) -> str:
        return f"{wire.MEMORY_KEY_PREFIX}{self.name}"

    def _worker_key(self) -> str:
        return f"{wire.WORKER_KEY_PREFIX}{self.name}"

    def _release(self, job: RqJob, execution: Execution) -> None:
        """Forget an execution, but change nothing of the job, which another worker owns."""
        with self.connection.pipeline() as pipeline:  # pyright: ignore[reportUnknownMemberType]
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            pipeline.execute()
