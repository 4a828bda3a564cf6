"""One attempt at a job: the engine's reports become events."""

import time

from api_schemas.events import BandFinishedData, StageStartedData, StepCompletedData, WarnedData
from worker.checkpoints import CheckpointStore
from worker.context import Workplace
from worker.errors import DiskFullError, EngineStalledError, HopelessJobError, PreemptedError
from worker.events import EventLog
from worker.process.protocol import (
    BandWritten,
    Began,
    Broke,
    Generate,
    Generated,
    Halted,
    Kept,
    Previewed,
    Refused,
    Report,
    Shown,
    Stepped,
    Stop,
    Warned,
)
from worker.watch import Watch

_TICK_S = 0.2


class Attempt:
    """Drives the engine process; the lease is kept while it shows progress, and no longer."""

    def __init__(
        self, workplace: Workplace, log: EventLog, checkpoints: CheckpointStore, watch: Watch
    ) -> None:
        self._workplace = workplace
        self._log = log
        self._checkpoints = checkpoints
        self._watch = watch
        self._stopping = False
        self._bands = 0
        self._reported_at = time.monotonic()
        request = log.job.request
        self._megapixels = request.width_px * request.height_px / 1e6

    def run(self, job: Generate) -> Generated:
        """Run until the rows are on disk.

        Raises:
            EngineLostError: the engine process died.
            EngineStalledError: it shows no progress.
            HopelessJobError: it reported an error.
            DiskFullError: it found no space.
            CanceledError, PreemptedError, FencedError: the job is not to go on here.
        """
        self._workplace.engine.send(job)
        while True:
            match self._receive():
                case Generated() as generated:
                    return generated
                case Halted(step=step):
                    self._settle_checkpoints()
                    raise PreemptedError(step, "the worker is shutting down")
                case Refused(reason=reason):
                    self._workplace.stop.set()
                    raise PreemptedError(0, f"the worker lost its model: {reason}")
                case Broke(code="disk_full", message=message):
                    raise DiskFullError(message)
                case Broke() as broke:
                    raise HopelessJobError(broke.code, broke.message, retryable=broke.retryable)
                case None:
                    pass
                case report:
                    self._relay(report)

    def _receive(self) -> Report | None:
        report = self._workplace.engine.receive(_TICK_S)
        self._watch.tick()
        self._checkpoints.pump()
        if self._workplace.stop.is_set() and not self._stopping:
            self._stopping = True
            self._workplace.engine.send(Stop(keep=True))
        if report is not None:
            self._reported_at = time.monotonic()
        elif time.monotonic() - self._reported_at > self._workplace.patience.stall_s:
            raise EngineStalledError(f"no progress for {self._workplace.patience.stall_s:g} s")
        return report

    def _relay(self, report: Report) -> None:
        match report:
            case Began():
                self._bands = report.bands
                self._begin_canvas(report)
            case Stepped():
                self._report_step(report)
            case Kept():
                self._checkpoints.keep(report, self._log.job.attempt)
            case BandWritten():
                self._report_band(report)
            case Warned():
                self._log.append(WarnedData(code=report.code, message=report.message))
            case Previewed():
                self._log.show(report.cells)
                self._workplace.engine.send(Shown())
            case _:
                pass

    def _begin_canvas(self, began: Began) -> None:
        if began.step == began.steps:
            self._begin_decoding()
            return
        data = StageStartedData(
            stage="denoise",
            total=began.steps,
            done=began.step,
            level=began.level,
            levels=began.levels,
            width_px=began.width_px,
            height_px=began.height_px,
            steps=began.own_steps,
        )
        self._log.append(data)

    def _begin_decoding(self) -> None:
        self._log.append(StageStartedData(stage="decode", total=self._bands))

    def _report_step(self, report: Stepped) -> None:
        pace = self._workplace.pace
        pace.learn_tile(report.seconds / report.tiles)
        eta_s = pace.after_steps(report.tiles_left, self._megapixels)
        self._log.append(
            StepCompletedData(step=report.step, steps=report.steps, tiles=report.tiles, eta_s=eta_s)
        )
        if report.step == report.steps:
            self._begin_decoding()

    def _report_band(self, report: BandWritten) -> None:
        pace = self._workplace.pace
        pace.learn_decode(report.seconds / (report.decoded_px / 1e6))
        share_left = 1 - report.done / report.bands
        self._log.append(
            BandFinishedData(
                top_px=report.top_px,
                height_px=report.height_px,
                bands_done=report.done,
                bands=report.bands,
                eta_s=pace.after_bands(share_left * self._megapixels, self._megapixels),
            )
        )

    def _settle_checkpoints(self) -> None:
        while self._checkpoints.pump():
            self._watch.tick()
            time.sleep(_TICK_S / 10)
