"""The engine's events as reports for the consumer."""

import time
from math import ceil

from api_schemas.events import BandFinishedData, PhaseStartedData, StepCompletedData, WarnedData
from worker.engine.denoise import Step
from worker.engine.generate import StageBegan
from worker.engine.plan import GenerationPlan
from worker.engine.stitch import Band
from worker.engine.warned import Warned
from worker.process.protocol import BandReport, StepReport


class ProgressReports:
    """Counts the work that is left and measures the time of each step and band.

    Args:
        scale: pixels of the picture per latent pixel.
        height_px: of the picture; the canvas may be a little larger.
    """

    def __init__(self, plan: GenerationPlan, scale: int, height_px: int) -> None:
        self._plan, self._scale = plan, scale
        self._band_px = plan.decode.tile_size * scale
        self._bands = ceil(height_px / self._band_px)
        self._work_left = 0.0
        self._measured_at = time.monotonic()
        self._before_first_tile = False

    def start_stage(self, stage: StageBegan, done: int) -> PhaseStartedData | None:
        """None if another stage follows that the checkpoint belongs to.

        Args:
            done: steps of all stages that a checkpoint has.
        """
        self._before_first_tile = True
        here, *later = self._plan.stages[stage.level - 1 :]
        # Of later stages as planned: their scheduler may take a step more.
        work = here.denoise.weigh_tiles(stage.steps)[max(done - stage.before, 0) :]
        self._work_left = sum(work) + sum(sum(each.denoise.weigh_tiles(each.steps)) for each in later)
        if done < stage.before + stage.steps:
            return PhaseStartedData(
                phase="denoise",
                total=stage.total,
                done=max(done, stage.before),
                level=stage.level,
                levels=stage.levels,
                width_px=stage.width * self._scale,
                height_px=stage.height * self._scale,
                steps=stage.steps,
            )
        return self.start_decoding() if stage.level == stage.levels else None

    def start_decoding(self) -> PhaseStartedData:
        return PhaseStartedData(phase="decode", total=self._bands)

    def note_tile(self) -> None:
        """Time before a stage's first tile is no step's: the canvas was made ready."""
        if self._before_first_tile:
            self._take_seconds()
            self._before_first_tile = False

    def complete_step(self, step: Step) -> StepReport:
        self._work_left -= step.work
        data = StepCompletedData(step=step.index + 1, steps=step.steps, tiles=step.tiles, eta_s=None)
        return StepReport(data, step.work, self._work_left, self._take_seconds())

    def finish_band(self, band: Band) -> BandReport:
        canvas, scale = self._plan.canvas, self._scale
        data = BandFinishedData(
            top_px=band.top,
            height_px=len(band.rows),
            bands_done=band.top // self._band_px + 1,
            bands=self._bands,
            eta_s=None,
        )
        decoded_px = min(self._band_px, canvas.height * scale - band.top) * canvas.width * scale
        return BandReport(data, decoded_px, self._take_seconds())

    def _take_seconds(self) -> float:
        """Since this was asked last."""
        before, self._measured_at = self._measured_at, time.monotonic()
        return self._measured_at - before


def warn(warned: Warned) -> WarnedData:
    return WarnedData(code=warned.code, message=warned.message)
