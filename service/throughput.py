"""How fast jobs finish, measured from their events; Retry-After and eta_s are computed from it."""

import json
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from service.messages import EventMessage

_KEPT: Final = 50
_FOLLOWED: Final = 10_000
_STARTS = frozenset({"job.started", "job.resumed"})
_PAUSE: Final = "job.preempted"
_COUNTED: Final = _STARTS | {"job.queued", _PAUSE}


@dataclass(slots=True)
class _Followed:
    model: str
    key_id: str
    work: float
    queued_at: float
    started_at: float | None = None


@dataclass(slots=True)
class _Drain:
    """How the queue of one key drains: times between two starts, where the second job waited already at the first."""

    gaps_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=_KEPT))
    last_start: float = float("inf")

    def note(self, queued_at: float, ts: float) -> None:
        if queued_at <= self.last_start <= ts:
            self.gaps_s.append(ts - self.last_start)
        self.last_start = ts


@dataclass(slots=True)
class _Waiting:
    count: int = 0
    work: float = 0.0


class Throughput:
    """Run times of the latest jobs of each model. Every event arrives once, in order."""

    def __init__(self) -> None:
        self._durations_s: dict[str, deque[float]] = {}
        self._jobs: OrderedDict[str, _Followed] = OrderedDict()
        self._running: dict[str, dict[str, _Followed]] = {}  # by model
        self._waiting: dict[str, _Waiting] = {}  # by model
        self._drains: OrderedDict[str, _Drain] = OrderedDict()

    def observe(self, event: EventMessage) -> None:
        """Take an event in; jobs that were queued before this process began are not measured."""
        if event.type not in _COUNTED and not event.is_terminal:
            return
        body = json.loads(event.text)
        job_id, ts = str(body["job_id"]), float(body["ts"])
        if event.type == "job.queued":
            data = body["data"]
            key_id, cost = data.get("key_id", ""), data["cost"]
            work = cost["tiles"] - cost.get("unguided_tiles", 0) / 2  # as Cost.work
            self._follow(job_id, _Followed(str(data["request"]["model"]), key_id, work, ts))
        elif event.type in _STARTS and (job := self._jobs.get(job_id)) is not None:
            if job.started_at is None:
                self._count(job, -1)
                if job.key_id:
                    self._drain(job.key_id).note(job.queued_at, ts)
            job.started_at = job.started_at or ts
            self._running.setdefault(job.model, {})[job_id] = job
        elif event.type == _PAUSE and (job := self._jobs.get(job_id)) is not None:
            self._running.get(job.model, {}).pop(job_id, None)
        elif event.is_terminal and (job := self._jobs.pop(job_id, None)) is not None:
            self._end(job_id, job, ts)

    def _end(self, job_id: str, job: _Followed, ts: float) -> None:
        if job.started_at is None:
            self._count(job, -1)
            return
        self._running.get(job.model, {}).pop(job_id, None)
        durations_s = self._durations_s.setdefault(job.model, deque(maxlen=_KEPT))
        durations_s.append(max(0.0, ts - job.started_at))

    def waiting_work(self, model: str) -> float | None:
        """Work, as `Cost` counts it, of a typical job that has not started yet; None if none is known."""
        waiting = self._waiting.get(model)
        return waiting.work / waiting.count if waiting and waiting.count else None

    def seconds_per_job(self, model: str) -> float | None:
        """Seconds that one worker needs for a typical job; None before the first has ended."""
        durations_s = self._durations_s.get(model)
        return median(durations_s) if durations_s else None

    def list_running(self, model: str) -> list[tuple[float, float]]:
        """Work, as `Cost` counts it, of each job of a model that has started, and Unix time of when it did."""
        running = self._running.get(model, {}).values()
        return [(job.work, job.started_at) for job in running if job.started_at is not None]

    def seconds_per_start(self, key_id: str, now: float) -> float | None:
        """Seconds from one start of a job of this key to the next, while more of them wait; None if not measured.

        What the next one has waited for already counts, where that is longer: few short jobs do not tell of a long one.
        """
        drain = self._drains.get(key_id)
        if drain is None or not drain.gaps_s:
            return None
        waiting = (
            job.queued_at for job in self._jobs.values() if job.key_id == key_id and not job.started_at
        )
        since = max(drain.last_start, next(waiting, now))  # they are kept as they came
        return max(median(drain.gaps_s), now - since)

    def _drain(self, key_id: str) -> _Drain:
        drain = self._drains.setdefault(key_id, _Drain())
        self._drains.move_to_end(key_id)
        if len(self._drains) > _FOLLOWED:
            self._drains.popitem(last=False)
        return drain

    def _count(self, job: _Followed, change: int) -> None:
        """Add a job to those that wait, or take it away."""
        waiting = self._waiting.setdefault(job.model, _Waiting())
        waiting.count += change
        waiting.work += change * job.work

    def _follow(self, job_id: str, job: _Followed) -> None:
        self._jobs[job_id] = job
        self._count(job, 1)
        while len(self._jobs) > _FOLLOWED:
            former_id, former = self._jobs.popitem(last=False)
            self._running.get(former.model, {}).pop(former_id, None)
            if former.started_at is None:
                self._count(former, -1)
