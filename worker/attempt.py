"""One attempt at a job: the engine's reports become events."""

import time

from api_schemas.events import PhaseStartedData, WarnedData
from worker.checkpoints import CheckpointStore
from worker.context import JobContext
from worker.disk_faults import hide_paths
from worker.errors import (
    DiskFullError,
    DiskUnwritableError,
    EngineStalledError,
    JobFailedError,
    PreemptedError,
)
from worker.events import EventLog
from worker.process.protocol import (
    BandReport,
    CellsPreviewed,
    CheckpointWritten,
    Failed,
    Generate,
    Generated,
    ModelRefused,
    PreviewsPublished,
    Report,
    StepReport,
    Stop,
    Stopped,
)
from worker.watch import Watch

_POLL_S = 0.2


class Attempt:
    """Drives the engine process, and keeps the lease as long as it makes progress."""

    def __init__(
        self, context: JobContext, log: EventLog, checkpoints: CheckpointStore, watch: Watch
    ) -> None:
        self._context, self._log = context, log
        self._checkpoints, self._watch = checkpoints, watch
        self._is_stopping = False
        self._reported_at = time.monotonic()
        request = log.job.request
        self._megapixels = request.width_px * request.height_px / 1e6

    def run(self, job: Generate) -> Generated:
        """Run until all rows are on disk.

        Raises:
            EngineLostError: the engine process died.
            EngineStalledError: it makes no progress.
            HopelessJobError: it reported an error.
            DiskFullError, DiskUnwritableError: it could not write to the work folder.
            CanceledError, ExpiredError, PreemptedError, FencedError: the job may not continue here.
        """
        self._context.engine.send(job)
        while True:
            match self._receive():
                case None:
                    continue
                case Generated() as generated:
                    return generated
                case Stopped(step=step):
                    self._await_uploads()
                    raise PreemptedError(step, "the worker is shutting down")
                case ModelRefused(reason=reason):
                    self._context.stop.set()
                    raise PreemptedError(0, f"the worker lost its model: {hide_paths(reason)}")
                case Failed(code="disk_full", message=message):
                    raise DiskFullError(message)
                case Failed(code="disk_unwritable", message=message):
                    raise DiskUnwritableError(message)
                case Failed() as failed:
                    raise JobFailedError(failed.code, failed.message, retryable=failed.retryable)
                case report:
                    self._relay(report)

    def _receive(self) -> Report | None:
        report = self._context.engine.receive(_POLL_S)
        self._watch.tick()
        self._checkpoints.upload_next()
        if self._context.stop.is_set() and not self._is_stopping:
            self._is_stopping = True
            self._context.engine.send(Stop(finish_step=True))
        if report is not None:
            self._reported_at = time.monotonic()
        elif time.monotonic() - self._reported_at > self._context.limits.stall_timeout_s:
            raise EngineStalledError(f"no progress for {self._context.limits.stall_timeout_s:g} s")
        return report

    def _relay(self, report: Report) -> None:
        match report:
            case PhaseStartedData() | WarnedData():
                self._log.append(report)
            case StepReport():
                self._relay_step(report)
            case BandReport():
                self._relay_band(report)
            case CheckpointWritten():
                self._checkpoints.add(report, self._log.job.attempt)
                self._watch.step = report.step
            case CellsPreviewed():
                self._log.publish_previews(report.cells)
                self._context.engine.send(PreviewsPublished())
            case _:
                pass

    def _relay_step(self, report: StepReport) -> None:
        pace, data = self._context.pace, report.data
        if report.work:  # else nothing was to be inpainted
            pace.learn_tile(report.seconds / report.work)
        eta_s = pace.after_steps(report.work_left, self._megapixels)
        self._log.append(data.model_copy(update={"eta_s": eta_s}))

    def _relay_band(self, report: BandReport) -> None:
        pace, data = self._context.pace, report.data
        pace.learn_decode(report.seconds / (report.decoded_px / 1e6))
        megapixels_left = (1 - data.bands_done / data.bands) * self._megapixels
        eta_s = pace.after_bands(megapixels_left, self._megapixels)
        self._log.append(data.model_copy(update={"eta_s": eta_s}))

    def _await_uploads(self) -> None:
        while self._checkpoints.upload_next():
            self._watch.tick()
            time.sleep(_POLL_S / 10)
