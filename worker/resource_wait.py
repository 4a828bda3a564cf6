"""What a job does while store or disk are missing: wait here for a while, then in the queue."""

from pathlib import Path

from api_schemas.disk import estimate_disk
from api_schemas.events import DelayedData
from worker.context import JobContext
from worker.errors import JobFailedError, PreemptedError, ResourceError
from worker.events import EventLog
from worker.watch import Watch

_MAX_PAUSE_S = 30.0


class ResourceWait:
    """The patience of one job on this worker.

    Args:
        folder: of the job, in the work folder.
    """

    def __init__(self, context: JobContext, log: EventLog, watch: Watch, folder: Path) -> None:
        self._machine = context.machine
        self._log = log
        self._watch = watch
        self._folder = folder
        self._need = estimate_disk(log.job.request, context.card)
        self._backoff = _Backoff(context.limits.storage_timeout_s)

    def require_space(self) -> None:
        """Ask the machine again: the worker asked before it knew the job, if the queue was empty.

        Raises:
            JobFailedError: no disk of this machine is large enough, even if it were empty.
            PreemptedError: it has no space now.
        """
        if misfit := self._watch.run(lambda: self._machine.find_misfit(self._need), lambda: None):
            raise JobFailedError("disk_full", misfit, retryable=True)
        self._blame_machine(0)

    def check_after_loss(self, step: int) -> None:
        """Wait, if the engine may have been lost for lack of a disk; raises what `wait` raises."""
        if (fault := self._find_fault()) is not None:
            self.wait(fault, step)

    def wait(self, error: ResourceError, step: int) -> None:
        """Wait a moment before another attempt, and say so.

        Args:
            step: steps that are done, for the event.

        Raises:
            ResourceError: the job has waited long enough, and no other job would wait for the same.
            PreemptedError: it has waited long enough, and it is the machine that all jobs wait for.
        """
        pause_s = self._backoff.take_pause()
        if pause_s is None:
            self._blame_machine(step)
            raise error
        self._machine.note(error)
        self._log.append(DelayedData(reason=f"{error.code}: {error}", retry_in_s=pause_s))
        self._watch.sleep(pause_s, step)
        self._machine.note(None)

    def _blame_machine(self, step: int) -> None:
        """
        Raises:
            PreemptedError: the machine is at fault, so the job waits in the queue until it is mended.
        """
        if (fault := self._find_fault()) is not None:
            self._machine.pause(fault)
            raise PreemptedError(step, f"{fault.code}: {fault}")

    def _find_fault(self) -> ResourceError | None:
        """What is wrong with the machine, were the files of this job not there."""
        return self._watch.run(lambda: self._machine.find_fault(self._need, self._folder), lambda: None)


class _Backoff:
    """Pauses of 1 s to 30 s, each twice the last, up to a total in seconds."""

    def __init__(self, total_s: float) -> None:
        self._left_s = total_s
        self._next_s = 1.0

    def take_pause(self) -> float | None:
        """None if the next pause would be too much."""
        pause_s = self._next_s
        if pause_s > self._left_s:
            return None
        self._left_s -= pause_s
        self._next_s = min(2 * pause_s, _MAX_PAUSE_S)
        return pause_s
