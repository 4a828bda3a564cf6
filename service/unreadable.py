"""Stored records that cannot be read: each is skipped, told once in the log, and counted."""

import logging
from collections import OrderedDict
from typing import Final, Literal

from redis.exceptions import ResponseError

from service.metrics import Metrics

Kind = Literal[
    "job", "event", "preview", "model", "heartbeat", "idempotency", "index", "queued", "webhook", "delivery"
]
_REMEMBERED: Final = 10_000
log = logging.getLogger(__name__)


class UnreadableRecords:
    """Remembers what was told already, the latest of it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._told: OrderedDict[tuple[Kind, str], None] = OrderedDict()

    def tell(self, kind: Kind, name: str | bytes, why: object) -> None:
        """Skip a record; `name` says which one of its kind, or of which job: one line for all events of a job."""
        name = ascii(name)[:200]
        if (kind, name) in self._told:
            return
        self._told[kind, name] = None
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        self._metrics.records_unreadable.labels(kind).inc()
        log.warning("a stored record is skipped: %s %s: %s", kind, name, str(why)[:500])


def require_wrong_type(error: Exception) -> None:
    """Pass on every error of Redis but that a key is of another type.

    Raises:
        RedisError: it is another one.
    """
    if not (isinstance(error, ResponseError) and "WRONGTYPE" in str(error)):
        raise error
