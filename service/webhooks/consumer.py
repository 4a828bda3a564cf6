"""The RQ worker of the queue `webhooks`. It hands deliveries over, and what is over time or lost comes again.

The set of what is due holds each delivery until it has an outcome, and RQ's lists may lose anything: whoever
takes a delivery moves it on in time, and when it is due again, it is queued again.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import timedelta
from threading import Event
from typing import Any, Final, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.queue import EnqueueData
from rq.timeouts import BaseDeathPenalty
from rq.utils import now
from rq.worker import WorkerStatus

from api_schemas.webhook import DELIVER, DUE_KEY, WEBHOOK_WORKERS_KEY, WEBHOOKS_QUEUE
from api_schemas.wire import SET_ASIDE, UNREADABLE_PREFIX, index_types
from service.webhooks.notice import Notice

HandOver = Callable[[Notice, int], None]

_LOOK_S: Final = 0.25
_BEAT_S: Final = 2.0
_FORGET_S: Final = 3600  # signs of life of processes that are gone
_QUEUED_AT_ONCE: Final = 100
_WAIT_IN_QUEUE_S: Final = 20  # until one that was lost there is queued again
_WORKER_TTL_S: Final = 20  # RQ's longest wait for the server is 5 s less
# KEYS: due.  ARGV: now, when those that are due now are due again if nobody sends them, most of them.
_CLAIM: Final = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], member) end
return due
"""
_RQ_LIST: Final = re.compile(rf"rq:.+:{WEBHOOKS_QUEUE}(:intermediate)?")
_HAND_OVER: ContextVar[HandOver] = ContextVar("hand_over")
log = logging.getLogger(__name__)


def deliver(member: str, ticket_ms: int) -> None:
    """What RQ calls. Returns as soon as an attempt can begin."""
    _HAND_OVER.get()(Notice.read(member), ticket_ms)


class _NoDeathPenalty(BaseDeathPenalty):
    """Attempts end by themselves, elsewhere."""

    def setup_death_penalty(self) -> None:
        return

    def cancel_death_penalty(self) -> None:
        return


class _QueuedDelivery(Job):
    """With write access to Redis one could queue a call of anything: what is no delivery counts as none."""

    def restore(self, raw_data: dict[bytes, bytes]) -> Any:
        try:
            restored = super().restore(raw_data)  # pyright: ignore[reportUnknownMemberType]
            called = self.func_name
        except Exception as error:  # RQ raises whatever its parts do
            raise self._refuse(error) from error
        if called != DELIVER:
            raise self._refuse(f"it calls {called!a:.100}")
        return restored

    def _refuse(self, why: object) -> NoSuchJobError:
        log.warning("what the queue has of %s cannot be read: %s", ascii(self.id)[:100], why)
        return NoSuchJobError(self.id)


class WebhookWorker(SimpleWorker):
    """Between two deliveries it queues those that have become due."""

    death_penalty_class = _NoDeathPenalty

    def __init__(self, redis: "Redis", name: str, stop: Event, hand_over: HandOver) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            [WEBHOOKS_QUEUE],
            name=name,
            connection=redis,
            serializer="json",
            job_class=_QueuedDelivery,
            worker_ttl=_WORKER_TTL_S,
            log_job_description=False,
        )
        self._stop = stop
        self._hand_over = hand_over
        self._looked_at = self._beat_at = -_BEAT_S

    # Called by RQ -------------------------------------------------------------------------------

    def request_stop(self, signum: int, frame: object) -> None:
        """Every SIGTERM or SIGINT sets flags, which the loops obey."""
        self._stop_requested = True
        self._stop.set()

    def register_death(self) -> None:
        """Also tell the service at once."""
        self.connection.zrem(WEBHOOK_WORKERS_KEY, self.name)
        super().register_death()

    def clean_registries(self) -> None:
        """What RQ cannot read of its lists goes as a whole, since it would stop there at every start."""
        try:
            super().clean_registries()
        except (RedisConnectionError, RedisTimeoutError):
            raise
        except Exception as error:  # RQ raises whatever its parts do
            log.warning("RQ's lists of %s cannot be read and are deleted: %r", WEBHOOKS_QUEUE, error)
            self.connection.delete(*(key for key in index_types([WEBHOOKS_QUEUE]) if _RQ_LIST.fullmatch(key)))
            self.last_cleaned_at = now()

    def clean_group_registries(self) -> None:
        """There are no groups here."""

    def increment_successful_job_count(self, pipeline: Pipeline | None = None) -> None:
        """Nobody reads RQ's statistics, and a number that is none would end each delivery with an error."""

    def increment_failed_job_count(self, pipeline: Pipeline | None = None) -> None:
        """As above."""

    def increment_total_working_time(self, job_execution_time: timedelta, pipeline: Pipeline) -> None:
        """As above."""

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for a delivery, and queue what becomes due meanwhile."""
        self.set_state(WorkerStatus.IDLE)
        while not self._stop.is_set():
            try:
                self._maintain()
                found = self.queue_class.dequeue_any(
                    self.queues, cast(int, _LOOK_S), self.connection, self.job_class, self.serializer
                )
                if found is not None:
                    found[0].redis_server_version = self.get_redis_server_version()
                    return found
            except DequeueTimeout:
                continue
            except (ValueError, NoSuchJobError) as error:  # it is out of the queue; what is due comes again
                log.warning("what the queue held is no delivery: %s", error)
            except (RedisConnectionError, RedisTimeoutError) as error:
                log.warning("waiting for Redis: %s", error)
                self._stop.wait(1)
        return None

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Where `deliver` finds to whom it hands over."""
        token = _HAND_OVER.set(self._hand_over)
        try:
            return super().perform_job(job, queue, execution)
        finally:
            _HAND_OVER.reset(token)

    # --------------------------------------------------------------------------------------------

    def _maintain(self) -> None:
        clock = time.monotonic()
        if clock - self._beat_at >= _BEAT_S:
            self._beat_at = clock
            self._beat()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        if clock - self._looked_at >= _LOOK_S:
            self._looked_at = clock
            self._queue_due()

    def _beat(self) -> None:
        ts = time.time()
        set_aside(self.connection)
        self.connection.zadd(WEBHOOK_WORKERS_KEY, {self.name: ts})
        self.connection.zremrangebyscore(WEBHOOK_WORKERS_KEY, "-inf", ts - _FORGET_S)
        self.heartbeat()

    def _queue_due(self) -> None:
        """No more than are soon sent: each is queued again when it has waited too long."""
        queue, ts = self.queues[0], time.time()
        if queue.count >= _QUEUED_AT_ONCE:
            return
        ticket_ms = round((ts + _WAIT_IN_QUEUE_S) * 1000)
        claim = self.connection.eval(_CLAIM, 1, DUE_KEY, round(ts * 1000), ticket_ms, _QUEUED_AT_ONCE)
        members = self._read(cast(Sequence[bytes], claim))
        calls = [_prepare_call(member, ticket_ms) for member in members]
        if calls:
            queue.enqueue_many(calls)

    def _read(self, members: Sequence[bytes]) -> list[str]:
        """Those that can be; the others are dropped."""
        kept: list[str] = []
        for member in members:
            try:
                kept.append(Notice.read(member.decode()).member)
            except ValueError as error:
                log.warning("what was due is dropped: %s", error)
                self.connection.zrem(DUE_KEY, member)
        return kept


def _prepare_call(member: str, ticket_ms: int) -> EnqueueData:
    arguments = member, ticket_ms
    return Queue.prepare_data(  # pyright: ignore[reportUnknownMemberType]
        DELIVER, arguments, result_ttl=0, failure_ttl=_WAIT_IN_QUEUE_S, ttl=_WAIT_IN_QUEUE_S
    )


def set_aside(redis: "Redis") -> None:
    """Nothing of another type than it should be throws the worker out of its loop."""
    types = index_types([WEBHOOKS_QUEUE])
    for key in cast(list[bytes], redis.eval(SET_ASIDE, len(types), *types, *types.values())):
        log.warning("%s is of another type; it is now %s%s", key.decode(), UNREADABLE_PREFIX, key.decode())
