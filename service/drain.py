"""How fast jobs come to an end, measured from their events: what Retry-After and eta_s are made of."""

import json
from collections import OrderedDict, deque
from statistics import median
from typing import Final

from service.messages import EventMessage

_KEPT: Final = 50
_FOLLOWED: Final = 1000
_STARTS = frozenset({"job.started", "job.resumed"})


class DrainMeter:
    """Remembers how long the last jobs ran. Events come once each, in order."""

    def __init__(self) -> None:
        self._durations_s: deque[float] = deque(maxlen=_KEPT)
        self._started: OrderedDict[str, float] = OrderedDict()

    def observe(self, event: EventMessage) -> None:
        if event.type not in _STARTS and not event.is_terminal:
            return
        body = json.loads(event.text)
        job_id, ts = str(body["job_id"]), float(body["ts"])
        if event.type in _STARTS:
            self._started.setdefault(job_id, ts)
            while len(self._started) > _FOLLOWED:
                self._started.popitem(last=False)
        elif (started := self._started.pop(job_id, None)) is not None:
            self._durations_s.append(max(0.0, ts - started))

    def seconds_per_job(self) -> float | None:
        """What one worker needs for a usual job; None before the first has ended."""
        return median(self._durations_s) if self._durations_s else None
