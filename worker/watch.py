"""Whatever a job waits for, this goes on meanwhile."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from worker.context import Workplace
from worker.errors import CanceledError, PreemptedError
from worker.events import EventLog

_TICK_S = 0.1

Result = TypeVar("Result")


class Watch:
    """Renews the lease and notices who wants the job to end."""

    def __init__(self, workplace: Workplace, log: EventLog) -> None:
        self._workplace = workplace
        self._log = log

    def tick(self) -> None:
        """Call this several times a second.

        Raises:
            CanceledError: a client or an operator wants the job's end.
        """
        self._workplace.renew_lease()
        if self._workplace.cancel.is_set():
            raise CanceledError("stopped by an operator")
        if self._log.is_cancel_asked():
            raise CanceledError("canceled by request")

    def sleep(self, seconds: float, step: int) -> None:
        """Wait, but not if the worker has to go.

        Args:
            step: steps that are done, for the event.

        Raises:
            CanceledError: somebody wants the job's end.
            PreemptedError: the worker has to go.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tick()
            if self._workplace.stop.wait(_TICK_S):
                raise PreemptedError(step, "the worker is shutting down")

    def run(self, work: Callable[[], Result], abort: Callable[[], None]) -> Result:
        """Run slow work in a thread.

        Args:
            abort: makes the work end soon; its result is then dropped.

        Raises:
            CanceledError: somebody wants the job's end; the work has ended by then.
        """
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            try:
                while not future.done():
                    self.tick()
                    time.sleep(min(_TICK_S, 0.02))
            except BaseException:
                abort()
                raise
            return future.result()
