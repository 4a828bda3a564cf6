"""Prometheus metrics. Each app has its own registry, so that two in one process don't collide."""

from collections import Counter as Counts
from collections.abc import Iterable, Mapping
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from api_schemas.events import WarningCode

PHASES: Final = ("queued", "loading", "denoise", "decode", "store")
OUTCOMES: Final = ("succeeded", "failed", "canceled", "expired")
DELIVERED: Final = ("delivered", "failed", "given_up", "disabled")

LIMITS: Final = ("calls", "queued_jobs", "megapixel_steps", "store_bytes")

_PAUSE_CODES: Final = ("disk_full", "disk_unwritable", "signing_unavailable", "storage_unavailable")


class SharedCounter(Collector):
    """Counts that all processes keep together in Redis, as they were when they were last read."""

    def __init__(
        self, name: str, documentation: str, label: str, values: Iterable[str], registry: CollectorRegistry
    ) -> None:
        self._family = name, documentation, label
        self._counts = dict.fromkeys(values, 0)
        registry.register(self)

    def set_all(self, counts: Mapping[str, int]) -> None:
        """Others than were named before are left out."""
        self._counts |= {value: counts.get(value, 0) for value in self._counts}

    def collect(self) -> Iterable[CounterMetricFamily]:
        name, documentation, label = self._family
        family = CounterMetricFamily(name, documentation, labels=[label])
        for value, count in self._counts.items():
            family.add_metric([value], count)
        yield family


class Metrics:
    """All metrics of the service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time and descriptors of this process
        self.requests = Counter(
            "chorale_http_requests",
            "Answered requests.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_s = Histogram(
            "chorale_http_request_seconds", "Time to the first byte.", ["route"], registry=self.registry
        )
        self.jobs_created = Counter("chorale_jobs_created", "Accepted jobs.", registry=self.registry)
        self.jobs_revived = Counter(
            "chorale_jobs_revived", "Jobs enqueued again by reconciliation.", registry=self.registry
        )
        self.records_unreadable = Counter(
            "chorale_records_unreadable",
            "Stored records that were skipped.",
            ["kind"],
            registry=self.registry,
        )
        self.live_readers = Gauge("chorale_live_readers", "Open event streams.", registry=self.registry)
        self.live_lag_s = Histogram(
            "chorale_live_lag_seconds",
            "Age of the oldest entry in each batch of the live stream at delivery.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.previews_dropped = Counter(
            "chorale_previews_dropped", "Preview messages dropped for slow clients.", registry=self.registry
        )
        self.queue_up = Gauge("chorale_queue_up", "1 if Redis answers, else 0.", registry=self.registry)
        self.jobs_waiting = Gauge("chorale_jobs_waiting", "Queued jobs.", ["model"], registry=self.registry)
        self.jobs_running = Gauge(
            "chorale_jobs_running", "Jobs held by workers.", ["model"], registry=self.registry
        )
        self.workers = Gauge(
            "chorale_workers", "Workers with a fresh heartbeat.", ["model"], registry=self.registry
        )
        self.workers_degraded = Gauge(
            "chorale_workers_degraded",
            "Workers that lost a device and continue with the rest, or report no progress.",
            registry=self.registry,
        )
        self.requests_shed = Counter(
            "chorale_http_requests_shed",
            "Requests refused because as many as may were being answered.",
            registry=self.registry,
        )
        self.background_restarts = Counter(
            "chorale_background_restarts",
            "Background tasks of this process that failed and were started again.",
            ["task"],
            registry=self.registry,
        )
        self.background_up = Gauge(
            "chorale_background_up", "0 while a background task has failed.", ["task"], registry=self.registry
        )

        self.workers_paused = Gauge(
            "chorale_workers_paused",
            "Workers that take no jobs, by what they lack.",
            ["reason"],
            registry=self.registry,
        )
        self.queue_writable = Gauge(
            "chorale_queue_writable", "1 if Redis takes writes, else 0.", registry=self.registry
        )
        self.store_free_bytes = Gauge(
            "chorale_store_free_bytes",
            "Free space on the disk of a store that is a folder, else NaN.",
            registry=self.registry,
        )

        self.bodies_held = Gauge(
            "chorale_bodies_held_bytes",
            "Bytes of requests that are being taken in: pictures on disk, and JSON in memory.",
            ["kind"],
            registry=self.registry,
        )
        self.connections_closed = Counter(
            "chorale_connections_closed",
            "Connections that were closed: a slow_head or slow_reader, evicted for others, or full.",
            ["reason"],
            registry=self.registry,
        )

        self.quota_refusals = Counter(
            "chorale_quota_refusals",
            "Requests refused because their API key has reached a limit.",
            ["limit"],
            registry=self.registry,
        )
        for limit in LIMITS:
            self.quota_refusals.labels(limit)

        self.jobs_ended = Counter("chorale_jobs_ended", "Ended jobs.", ["outcome"], registry=self.registry)
        self.phase_s = Histogram(
            "chorale_job_phase_seconds",
            "Time that jobs which succeeded spent in each phase.",
            ["phase"],
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 1200, 3600, 14_400),
            registry=self.registry,
        )
        self.tiles = Counter("chorale_tiles", "Tile predictions made by workers.", registry=self.registry)
        self.jobs_warned = Counter(
            "chorale_jobs_warned",
            "Warnings of jobs that went on, such as a picture that could not be signed.",
            ["code"],
            registry=self.registry,
        )
        for code in get_args(WarningCode):
            self.jobs_warned.labels(code)
        self.worker_memory = Gauge(
            "chorale_worker_resident_memory_bytes",
            "Main memory of a worker and its engine.",
            ["worker"],
            registry=self.registry,
        )
        self.webhooks_waiting = Gauge(
            "chorale_webhooks_waiting", "Deliveries that wait for an attempt.", registry=self.registry
        )
        self.webhook_workers = Gauge(
            "chorale_webhook_workers", "Processes that deliver webhooks.", registry=self.registry
        )
        self.webhook_attempts = SharedCounter(
            "chorale_webhook_attempts", "Attempts to deliver webhooks.", "outcome", DELIVERED, self.registry
        )
        for outcome in OUTCOMES:  # so that each is there before its first job
            self.jobs_ended.labels(outcome)

    def count_paused(self, faults: Iterable[str]) -> None:
        """Paused workers by the code of `code: message`; no worker can invent a series."""
        codes = Counts(fault.partition(":")[0] for fault in faults)
        for code in _PAUSE_CODES:
            self.workers_paused.labels(code).set(codes.pop(code, 0))
        self.workers_paused.labels("other").set(codes.total())

    def render(self) -> bytes:
        return generate_latest(self.registry)
