"""Prometheus metrics. Each app has its own registry, so that two in one process don't collide."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """All metrics of the service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
            "Workers that lost a device and continue with the rest.",
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

    def render(self) -> bytes:
        return generate_latest(self.registry)
