"""The RQ worker, which takes jobs from the queue and never touches torch or a device."""

import logging
import time
from dataclasses import replace
from datetime import timedelta
from typing import cast

from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job as RqJob
from rq.results import Result
from rq.timeouts import BaseDeathPenalty
from rq.worker import WorkerStatus

from api_schemas import wire
from api_schemas.disk import DiskNeed, estimate_disk
from api_schemas.stored import UnreadableRecordError
from api_schemas.waiting import RELEASE, name_keys, release_arguments
from worker.context import JOB_CONTEXT, JobContext
from worker.errors import FencedError, ResourceError
from worker.events import EventLog
from worker.janitor import Janitor, publish_card, set_aside
from worker.native_memory import give_back
from worker.patience import is_wrong_type
from worker.process.client import EngineProcess
from worker.process.protocol import ModelRefused
from worker.queued_job import QueuedJob
from worker.runner import RELEASED
from worker.sign_of_life import SignOfLife

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
            job_class=QueuedJob,
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
        self._life = SignOfLife(context.redis, context.worker, lease_s)
        self._run_release = context.redis.register_script(RELEASE)
        self._current: tuple[RqJob, Execution] | None = None
        self._renewed_at = 0.0
        self._said_fault: ResourceError | None = None

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
        self._life.end()
        super().register_death()

    def clean_registries(self) -> None:
        self._janitor.clean(self)

    def clean_group_registries(self) -> None:
        """There are no groups here."""

    def increment_successful_job_count(self, pipeline: Pipeline | None = None) -> None:
        """Nobody reads RQ's statistics, and a number that is none would keep each job from being finished."""

    def increment_failed_job_count(self, pipeline: Pipeline | None = None) -> None:
        """As above."""

    def increment_total_working_time(self, job_execution_time: timedelta, pipeline: Pipeline) -> None:
        """As above."""

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """Wait for a job; unlike RQ's own loop, notice a stop within a second."""
        self._set_aside()
        self.set_state(WorkerStatus.IDLE)
        while not self._context.stop.is_set():
            try:
                self._maintain()
                self._release_next()
                if not self._is_machine_fit():
                    self._context.stop.wait(_POLL_S)
                    continue
                found = self.queue_class.dequeue_any(
                    self.queues, _POLL_S, self.connection, self.job_class, self.serializer
                )
                if found is not None:
                    self._set_aside(found[0].id)
                    found[0].redis_server_version = self.get_redis_server_version()
                    return found
            except DequeueTimeout:
                continue
            except ValueError as error:  # it is out of the queue, and the janitor drops it
                _log.warning("what the queue held is no id of a job: %s", error)
                self._context.stop.wait(_POLL_S / 10)
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
            give_back()

    def _finalize_success(self, job: RqJob, queue: Queue, execution: Execution, return_value: object) -> None:
        if return_value == RELEASED:
            self._release(job, execution)
        else:
            self._set_aside(job.id)
            self._janitor.forget_lost_executions(job)
            super()._finalize_success(job, queue, execution, return_value)

    # --------------------------------------------------------------------------------------------

    def _maintain(self) -> None:
        if isinstance(self._engine.check(), ModelRefused):
            self._context.stop.set()
        self._keep_alive()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()

    def _release_next(self) -> None:
        """Let the next of the waiting jobs into the queue, if there is none for this worker; the service may be away."""
        keys = name_keys(self.queues[0].name)
        try:
            self._run_release(keys, release_arguments(self._context.card.name, is_idle=True))
        except ResponseError as error:  # the server is full, say
            _log.warning("no job is released: %s", error)

    def _is_machine_fit(self) -> bool:
        """Whether work folder and store would take the next job."""
        machine, stop = self._context.machine, self._context.stop
        is_fit = machine.is_fit(self._estimate_next(), stop, self._maintain)
        self._keep_alive()
        return is_fit

    def _estimate_next(self) -> DiskNeed | None:
        """What the first job in the queue needs on disk."""
        first = cast(list[bytes], self.connection.lrange(self.queues[0].key, 0, 0))
        job_id = wire.read_id(first[0]) if first else None
        if job_id is None:
            return None
        try:
            job = EventLog(self.connection, job_id).job
        except (FencedError, UnreadableRecordError):  # no record, or none that can be read
            return None
        return estimate_disk(job.request, self._context.card)

    def _keep_alive(self) -> None:
        """Renew the lease and this worker's keys, a few times a lease, and at once what clients should know."""
        now, fault = time.monotonic(), self._context.machine.fault
        is_news = (fault and fault.code) != (self._said_fault and self._said_fault.code)
        if now - self._renewed_at < self._lease_s / _RENEWALS_PER_LEASE and not is_news:
            return
        self._renewed_at, self._said_fault = now, fault
        try:
            self._renew(fault, is_news)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            self._renewed_at = 0.0  # a key was changed just now, and the next call sets it aside

    def _renew(self, fault: ResourceError | None, is_news: bool) -> None:
        self._set_aside(self._current and self._current[0].id)
        publish_card(self.connection, self._context.card)
        self._life.give(self._context.card.name, self._engine.trouble)
        if is_news or fault is not None:
            self._life.tell_pause(fault)
        if self._current is None:
            self.heartbeat()
        else:
            self.maintain_heartbeats(*self._current)

    def _set_aside(self, job_id: str | None = None) -> None:
        """Nothing that RQ keeps of this queue, this worker or a job throws the worker out of its loop."""
        types = wire.index_types([self.queues[0].name])
        types |= {self.key: "hash", self.executions_key: "set"}
        if job_id is not None:
            types[ExecutionRegistry(job_id, self.connection).key] = "zset"
            types[Result.get_key(job_id)] = "stream"  # pyright: ignore[reportUnknownMemberType]
        set_aside(self.connection, types)

    def _release(self, job: RqJob, execution: Execution) -> None:
        """Forget an execution, but change nothing of the job, which another worker owns."""
        with self.connection.pipeline() as pipeline:  # pyright: ignore[reportUnknownMemberType]
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            pipeline.execute()
