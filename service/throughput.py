"""How fast jobs finish, measured from their events; Retry-After and eta_s are computed from it."""

import json
from collections import OrderedDict, deque
from dataclasses import dataclass
from statistics import median
from typing import Final

from service.messages import EventMessage

_KEPT: Final = 50
_FOLLOWED: Final = 10_000
_STARTS = frozenset({"job.started", "job.resumed"})


@dataclass(slots=True)
class _Followed:
    model: str
    started_at: float | None = None


class Throughput:
    """Run times of the latest jobs of each model. Every event arrives once, in order."""

    def __init__(self) -> None:
        self._durations_s: dict[str, deque[float]] = {}
        self._jobs: OrderedDict[str, _Followed] = OrderedDict()

    def observe(self, event: EventMessage) -> None:
        """Take an event in; jobs that were queued before this process began are not measured."""
        if event.type != "job.queued" and event.type not in _STARTS and not event.is_terminal:
            return
        body = json.loads(event.text)
        job_id, ts = str(body["job_id"]), float(body["ts"])
        if event.type == "job.queued":
            self._follow(job_id, str(body["data"]["request"]["model"]))
        elif event.type in _STARTS and (job := self._jobs.get(job_id)) is not None:
            job.started_at = job.started_at or ts
        elif event.is_terminal and (job := self._jobs.pop(job_id, None)) and job.started_at is not None:
            durations_s = self._durations_s.setdefault(job.model, deque(maxlen=_KEPT))
            durations_s.append(max(0.0, ts - job.started_at))

    def seconds_per_job(self, model: str) -> float | None:
        """Seconds that one worker needs for a typical job; None before the first has ended."""
        durations_s = self._durations_s.get(model)
        return median(durations_s) if durations_s else None

    def _follow(self, job_id: str, model: str) -> None:
        self._jobs[job_id] = _Followed(model)
        while len(self._jobs) > _FOLLOWED:
            self._jobs.popitem(last=False)
