"""Notices that a process is stopped or hangs, though it has not died."""

import os
import time
from collections.abc import Callable

ANSWER_S = 5.0  # time for an answer to a probe
_PROBE_EVERY_S = 2.0
_MOST_SILENT = 3  # probes in a row: a count, since a machine that was suspended makes one of them fail
_MOST_STARTING = 300  # probes before the first answer; they are refused at once
_MOST_STOPPED = 50  # looks in a row, about 10 s


class Health:
    """What is known of one child process.

    Args:
        probe: asks it for an answer, for at most `ANSWER_S`; None if it serves nobody.
        every_s: time between two probes.
    """

    def __init__(
        self, child: int, probe: Callable[[], bool] | None = None, every_s: float = _PROBE_EVERY_S
    ) -> None:
        self._child = child
        self._probe = probe
        self._every_s = every_s
        self._has_answered = False
        self._silent = 0
        self._stopped = 0
        self._probe_at = 0.0

    def look(self) -> str | None:
        """Call this several times a second; says what is wrong once it has lasted."""
        self._stopped = self._stopped + 1 if _is_stopped(self._child) else 0
        if self._stopped >= _MOST_STOPPED:
            return "stood still for 10 s, stopped by a signal (SIGSTOP?)"
        if self._probe is not None and time.monotonic() >= self._probe_at:
            self._note(self._probe())
            self._probe_at = time.monotonic() + self._every_s
        if self._silent >= (_MOST_SILENT if self._has_answered else _MOST_STARTING):
            return f"gave no answer to {self._silent} probes in a row, {ANSWER_S:.0f} s each"
        return None

    def _note(self, answers: bool) -> None:
        self._has_answered = self._has_answered or answers
        self._silent = 0 if answers else self._silent + 1


def _is_stopped(child: int) -> bool:
    """Whether a signal has stopped this child and none has continued it."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return False
    try:
        return os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
