"""What became of jobs and how long each phase took, for the metrics and the log, from their events."""

import json
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, cast, get_args

from api_schemas.events import WarningCode
from service.messages import EventMessage
from service.metrics import PHASES, Metrics

_FOLLOWED: Final = 10_000
_WARNINGS: Final = get_args(WarningCode)
_BEGINS: Final = {"job.started": "loading", "job.resumed": "loading", "job.preempted": "queued"}
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Course:
    """Seconds that a job has spent in each phase: those after an interruption count too."""

    phase: str
    since: float
    spent_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def enter(self, phase: str, ts: float) -> None:
        self.spent_s[self.phase] += max(0.0, ts - self.since)
        self.phase, self.since = phase, ts


class JobMeter:
    """Every event arrives once, in order. Phases of jobs that were queued before this process began are not measured."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._courses: OrderedDict[str, _Course] = OrderedDict()

    def observe(self, event: EventMessage) -> None:
        """Take an event in; what has not the form that this version knows is not measured."""
        body = cast(dict[str, object], json.loads(event.text))
        try:
            job_id, ts = str(body["job_id"]), float(cast(float, body["ts"]))
            self._observe(event, job_id, ts, cast(dict[str, object], body["data"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return

    def _observe(self, event: EventMessage, job_id: str, ts: float, data: dict[str, object]) -> None:
        if event.type == "step.completed":
            self._metrics.tiles.inc(cast(int, data["tiles"]))
        elif event.type == "job.warned" and data["code"] in _WARNINGS:
            self._metrics.jobs_warned.labels(data["code"]).inc()
        elif event.type == "job.queued":
            self._follow(job_id, ts)
        elif event.is_terminal:
            self._end(job_id, event.type.removeprefix("job."), ts)
        elif (course := self._courses.get(job_id)) and (phase := _name_phase(event.type, data)):
            course.enter(phase, ts)

    def _follow(self, job_id: str, ts: float) -> None:
        self._courses[job_id] = _Course("queued", ts)
        while len(self._courses) > _FOLLOWED:
            self._courses.popitem(last=False)

    def _end(self, job_id: str, outcome: str, ts: float) -> None:
        self._metrics.jobs_ended.labels(outcome).inc()
        course = self._courses.pop(job_id, None)
        if course is None:
            log.info("job %s %s", job_id, outcome)
            return
        course.enter("queued", ts)
        log.info("job %s %s: %s", job_id, outcome, _describe(course))
        if outcome == "succeeded":  # the others have phases that were cut short
            for phase, seconds in course.spent_s.items():
                self._metrics.phase_s.labels(phase).observe(seconds)


def _name_phase(kind: str, data: dict[str, object]) -> str | None:
    """The phase that begins with this event; `stage` is its name in events stored long ago."""
    if kind in ("phase.started", "stage.started"):
        phase = str(data.get("phase", data.get("stage")))
        return phase if phase in PHASES else None
    return _BEGINS.get(kind)


def _describe(course: _Course) -> str:
    return ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in course.spent_s.items())
