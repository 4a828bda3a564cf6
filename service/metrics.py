"""What Prometheus is told. Each app has its own registry, so that two in one process don't collide."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The instruments, by what they measure."""

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
        self.live_readers = Gauge(
            "chorale_live_readers", "Clients that follow a job now.", registry=self.registry
        )
        self.live_lag_s = Histogram(
            "chorale_live_lag_seconds",
            "Age of the oldest entry of each batch of the live stream when it is handed out.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.previews_dropped = Counter(
            "chorale_previews_dropped", "Preview messages that slow readers missed.", registry=self.registry
        )
        self.queue_up = Gauge("chorale_queue_up", "1 while Redis answers.", registry=self.registry)
        self.jobs_waiting = Gauge(
            "chorale_jobs_waiting", "Jobs in a model's queue.", ["model"], registry=self.registry
        )
        self.jobs_running = Gauge(
            "chorale_jobs_running", "Jobs that a worker holds.", ["model"], registry=self.registry
        )
        self.workers = Gauge(
            "chorale_workers", "Workers whose heartbeat is fresh.", ["model"], registry=self.registry
        )
        self.workers_degraded = Gauge(
            "chorale_workers_degraded",
            "Workers that go on with less than they were given.",
            registry=self.registry,
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
