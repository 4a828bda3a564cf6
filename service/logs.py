"""The log of the API process: each line with its time, request and job, and no line repeated without end."""

import logging
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock, Timer
from typing import Final, cast

from asgi_correlation_id import correlation_id

from api_schemas.keys import hide_secrets

SCOPE: Final[ContextVar[Mapping[str, object] | None]] = ContextVar("scope", default=None)
"""The ASGI scope of the present request; its route has put the job's id there."""

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s [%(request)s %(job)s] %(message)s"
_JOB_ID: Final = re.compile("[0-9a-f]{1,64}")
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_MOST: Final = 20  # of one place in the code
_WINDOW_S: Final = 60.0


def set_up() -> None:
    """Log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLineFormatter(_FORMAT))
    handler.addFilter(_add_context)
    handler.addFilter(RepeatFilter(_MOST, _WINDOW_S))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("asgi_correlation_id").setLevel(logging.ERROR)  # a malformed id is no news


class _OneLineFormatter(logging.Formatter):
    """What clients send can make no lines of its own, and shows no secrets; tracebacks keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return super().formatMessage(record).translate(_CONTROL)


def _add_context(record: logging.LogRecord) -> bool:
    record.request = correlation_id.get() or "-"
    parameters = cast(Mapping[str, object], (SCOPE.get() or {}).get("path_params", {}))
    job_id = str(parameters.get("job_id", ""))
    record.job = job_id if _JOB_ID.fullmatch(job_id) else "-"
    return True


@dataclass(slots=True)
class _Window:
    began: float
    passed: int = 0
    held_back: int = 0


class RepeatFilter(logging.Filter):
    """Lets `most` records of one kind pass in `window_s` seconds, counts the others, and tells the count at its end.

    Of one kind are records of one place in the code with one type of error: words differ with what clients
    send. What this service says of each job, below warnings, always passes: there are no more jobs than are
    accepted.
    """

    def __init__(self, most: int, window_s: float) -> None:
        super().__init__()
        self._most = most
        self._window_s = window_s
        self._windows: dict[tuple[object, ...], _Window] = {}
        self._lock = Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING and record.name.startswith("service."):
            return True
        now, kind = time.monotonic(), _kind(record)
        with self._lock:
            window = self._windows.get(kind)
            if window is None or now - window.began >= self._window_s:
                window = self._windows[kind] = _Window(now)
            window.passed += 1
            if window.passed <= self._most:
                return True
            window.held_back += 1
            if window.held_back == 1:
                self._tell_later(window, record)
            return False

    def _tell_later(self, window: _Window, record: logging.LogRecord) -> None:
        timer = Timer(
            max(0.0, window.began + self._window_s - time.monotonic()), self._tell, (window, record)
        )
        timer.daemon = True
        timer.start()

    def _tell(self, window: _Window, record: logging.LogRecord) -> None:
        text = "%d more in %g s like: %s"
        # Below the level that is counted, from a name that is not.
        _log.info(text, window.held_back, self._window_s, record.getMessage()[:200])


_log = logging.getLogger(__name__)


def _kind(record: logging.LogRecord) -> tuple[object, ...]:
    return record.pathname, record.lineno, record.exc_info[0] if record.exc_info else None
