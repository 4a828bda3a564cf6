"""Retries of the connection to the queue server, and what its errors mean."""

import logging
from collections.abc import Callable
from threading import Event
from typing import Any, TypeVar

from redis.backoff import AbstractBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

_PAUSE_S = 0.2
_REFUSALS = ("MISCONF", "OOM ", "command not allowed when used memory", "READONLY")
_log = logging.getLogger(__name__)

T = TypeVar("T")


class PatientRetry(Retry):
    """Tries again a number of times while the server is away, and without end while it refuses to write.

    A server whose disk or memory is full does nothing of what it refuses, so it may be asked again, and
    the job that waits goes on where it is.

    Args:
        stop: ends the waiting.
    """

    def __init__(self, backoff: AbstractBackoff, retries: int, stop: Event) -> None:
        super().__init__(backoff, retries)
        self._given = backoff, retries
        self._stop = stop

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[[Exception], Any] | Callable[[Exception, int], Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        is_told = False
        while True:
            try:
                answer = super().call_with_retry(do, fail, is_retryable, with_failure_count)
            except ResponseError as error:
                if not is_refusal(error) or self._stop.is_set():
                    raise
                if not is_told:
                    _log.warning("waiting for the queue server, which refuses to write: %s", error)
                is_told = True
                self._stop.wait(_PAUSE_S)
            else:
                if is_told:
                    _log.warning("the queue server writes again")
                return answer

    def __deepcopy__(self, memo: object) -> "PatientRetry":
        """For each connection; an event cannot be copied."""
        return PatientRetry(*self._given, self._stop)


def is_wrong_type(error: object) -> bool:
    """Whether a command met a key of another type than it is for."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def is_refusal(error: Exception) -> bool:
    """Whether the server does not write at present. In pipelines the server's words come after ours."""
    return isinstance(error, ResponseError) and any(word in str(error) for word in _REFUSALS)
