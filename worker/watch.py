"""What goes on while a job waits for anything: the lease is renewed, and a cancellation noticed."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from api_schemas.job import find_deadline
from api_schemas.wire import EXPIRED
from worker.context import JobContext
from worker.errors import CanceledError, ExpiredError, PreemptedError
from worker.events import EventLog

_TICK_S = 0.1

T = TypeVar("T")


class Watch:
    """Renews the lease, and notices when the job is to end.

    `step` is that of the newest checkpoint.
    """

    def __init__(self, context: JobContext, log: EventLog) -> None:
        self._context = context
        self._log = log
        self._stopping_since: float | None = None
        self.step = 0

    def tick(self) -> None:
        """Call this several times a second.

        Raises:
            CanceledError: a client or an operator has canceled the job.
            ExpiredError: it has missed its deadline.
            PreemptedError: the worker is shutting down and has waited long enough.
        """
        self._context.renew_lease()
        if self._context.cancel.is_set():
            raise CanceledError("stopped by an operator")
        self._require_time()
        if self._context.stop.is_set():
            self._require_end_of_step()

    def _require_time(self) -> None:
        """Whether the service has asked for an end, or the deadline has passed by this machine's clock."""
        asked, deadline = self._log.read_cancel(), find_deadline(self._log.job)
        if asked is not None and asked != EXPIRED:
            raise CanceledError("canceled by request")
        if asked is not None or (deadline is not None and time.time() >= deadline):
            raise ExpiredError

    def sleep(self, seconds: float, step: int) -> None:
        """Wait, unless the worker shuts down.

        Args:
            step: steps that are done, for the event.

        Raises:
            CanceledError, ExpiredError: as from `tick`.
            PreemptedError: the worker is shutting down.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tick()
            if self._context.stop.wait(_TICK_S):
                raise PreemptedError(step, "the worker is shutting down")

    def run(self, work: Callable[[], T], abort: Callable[[], None]) -> T:
        """Run slow work in a thread.

        Args:
            abort: makes the work end soon; its result is then dropped.

        Raises:
            CanceledError, ExpiredError, PreemptedError: as from `tick`; the work has ended by then.
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

    def _require_end_of_step(self) -> None:
        """A step may take minutes, but who stops a worker kills it after one."""
        now, longest_s = time.monotonic(), self._context.limits.drain_timeout_s
        self._stopping_since = self._stopping_since or now
        if now - self._stopping_since > longest_s:
            message = f"the worker is shutting down, and its step took longer than {longest_s:g} s"
            raise PreemptedError(self.step, message)
