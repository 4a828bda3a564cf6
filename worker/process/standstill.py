"""Notices that a process is stopped by a signal: it neither ends nor goes on, and its pipe stays open."""

import time
from collections.abc import Iterator
from typing import Final

import psutil

_LOOK_S: Final = 1.0  # looking at the children reads the table of all processes: 10 ms
STILL_S: Final = 10.0


class Standstill:
    """What is known of one process.

    Args:
        children: whether to look at those too.
        still_s: how long it may stand still; who is busy for minutes does not.
    """

    def __init__(self, pid: int, *, children: bool, still_s: float = STILL_S) -> None:
        self._pid = pid
        self._children = children
        self._still_s = still_s
        self._every_s = min(_LOOK_S, still_s / 5)
        self._looked_at = time.monotonic()
        self._stood_s = 0.0

    def find(self) -> str | None:
        """Call this several times a second; says what is wrong once it has lasted."""
        passed_s = time.monotonic() - self._looked_at
        if passed_s < self._every_s:
            return None
        self._looked_at += passed_s
        # Who has not looked for long, as on a machine that was suspended, has not seen it stand still for as long.
        stood_s = min(passed_s, 2 * self._every_s)
        self._stood_s = self._stood_s + stood_s if self._is_stopped() else 0.0
        if self._stood_s < self._still_s:
            return None
        return f"stood still for {self._still_s:g} s, stopped by a signal (SIGSTOP?)"

    def _is_stopped(self) -> bool:
        return any(map(_is_stopped, self._list_processes()))

    def _list_processes(self) -> Iterator[psutil.Process]:
        try:
            own = psutil.Process(self._pid)
            yield own
            yield from own.children(recursive=True) if self._children else ()
        except psutil.Error:  # it has ended, which others notice
            return


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False
