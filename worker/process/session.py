"""One picture in the engine process: the caller of the engine's generator."""

import logging
import time
from collections.abc import Generator
from contextlib import closing
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from worker.engine.denoise import Checkpoint, Step, TilePredicted
from worker.engine.generate import Progress, StageBegan
from worker.engine.stitch import Band
from worker.engine.vae.executor import SignOfLife
from worker.engine.warned import Warned
from worker.errors import CheckpointError
from worker.planner import plan_generation
from worker.process import protocol
from worker.process.files import ImageFile, read_checkpoint, write_checkpoint
from worker.process.generation import generate_job
from worker.process.previews import Arrivals, PreviewCanvas
from worker.process.protocol import (
    Ascending,
    BandWritten,
    Began,
    Generate,
    Generated,
    Halted,
    Kept,
    Previewed,
    Shown,
    Stepped,
    Stop,
)
from worker.process.ranks import RankJob, RankProcesses
from worker.process.warmup import Ready

_log = logging.getLogger(__name__)
_SHOW_EVERY_S = 0.05
_SHOW_BYTES = 48_000  # fits the pipe's buffer, so that sending never waits for the consumer
_LAST_SHOW_S = 2.0
_KEEP_SHARE = 20  # checkpoints take at most one twentieth of the time


class HaltedError(Exception):
    """The consumer asked for the end."""

    def __init__(self, report: Halted) -> None:
        super().__init__(f"halted after step {report.step}")
        self.report = report


class Session:
    """Runs one job: paints previews, writes checkpoints and rows, obeys commands between tiles."""

    def __init__(
        self,
        ready: Ready,
        job: Generate,
        pipe: Connection,
        ranks: RankProcesses,
        keep_every_s: float,
    ) -> None:
        model, card = ready.model, ready.card
        self._model, self._job, self._pipe, self._ranks = model, job, pipe, ranks
        self._plan = plan_generation(job.request, card, ready.decode_memory, job.folder)
        self._resume, self._spent_s = _read(job.checkpoint)
        self._began = self._lap = time.monotonic()
        self._keep_every_s = self._keep_pause_s = keep_every_s
        self._kept_at = self._shown_at = self._began
        self._kept_step = self._resume.step if self._resume else 0
        self._arrivals = Arrivals()
        self._may_show = True
        self._halting = False
        self._stage: StageBegan | None = None
        self._tiles: list[int] = []  # of each step, from the first of this stage
        self._is_fresh = False
        canvas, self._shown = self._plan.canvas, (job.request.height_px, job.request.width_px)
        self._canvas = PreviewCanvas(
            canvas.height, canvas.width, model.card.vae_scale, model.preview_map, self._shown
        )

    def finish(self) -> Generated:
        """Run to the end.

        Raises:
            HaltedError: told to stop.
        """
        path = self._job.folder / "image.tif"
        with (
            ImageFile(path, *self._shown, self._job.request.bit_depth) as image,
            closing(self._open()) as progress,
        ):
            for event in progress:
                self._take_in(event, image)
                self._obey()
                self._show()
        self._show_rest()
        return Generated(path, self._engine_s())

    def _open(self) -> Generator[Progress, None, None]:
        checkpoint = self._job.checkpoint if self._resume else None
        with self._ranks.begin(RankJob(self._job, self._plan, checkpoint)) as group:
            yield from generate_job(self._model, self._job, self._plan, self._resume, group)

    def _take_in(self, event: Progress, image: ImageFile) -> None:
        if not isinstance(event, TilePredicted | Step):
            self._paint_arrived(wait=True)  # what comes now lies on another canvas, or over this one
        match event:
            case StageBegan():
                self._begin_stage(event)
            case SignOfLife():
                self._pipe.send(Ascending())
            case TilePredicted():
                if self._is_fresh:
                    self._take_lap()  # what the way to this canvas took is not the pace of its tiles
                    self._is_fresh = False
                self._arrivals.expect(event)
                self._paint_arrived()
            case Step():
                self._report_step(event)
            case Band():
                self._write_band(event, image)
            case Warned():
                _log.warning("%s", event.message)
                self._pipe.send(protocol.Warned(event.code, event.message))

    def _paint_arrived(self, *, wait: bool = False) -> None:
        for tile, clean in self._arrivals.take(wait=wait):
            self._canvas.paint(tile.tile, clean, tile.index + 1)

    def _begin_stage(self, stage: StageBegan) -> None:
        """A stage without steps left goes unreported, unless it is the last."""
        self._stage, self._is_fresh = stage, True
        here, *later = self._plan.stages[stage.level - 1 :]
        self._tiles = here.denoise.count_tiles(stage.steps)
        self._tiles += [tiles for each in later for tiles in each.denoise.count_tiles(each.steps)]
        self._canvas.begin(stage.height, stage.width)
        done, scale = max(self._kept_step, stage.before), self._model.card.vae_scale
        if done < stage.before + stage.steps or stage.level == stage.levels:
            self._pipe.send(
                Began(
                    done, stage.total, self._count_bands(), stage.level, stage.levels,
                    stage.width * scale, stage.height * scale, stage.steps,
                )
            )  # fmt: skip

    def _report_step(self, step: Step) -> None:
        done = step.index + 1
        left = self._count_tiles_left(step)
        self._pipe.send(Stepped(done, step.steps, step.tiles, left, self._take_lap()))
        due = time.monotonic() - self._kept_at >= self._keep_pause_s
        if due or self._halting or done == step.steps:
            self._keep(step)
        if done == step.steps:
            self._paint_arrived(wait=True)
        if self._halting:
            raise HaltedError(Halted(done))

    def _count_tiles_left(self, step: Step) -> int:
        """Of later stages as planned: a scheduler may take a step more."""
        assert self._stage is not None
        return sum(self._tiles[step.index + 1 - self._stage.before :])

    def _keep(self, step: Step) -> None:
        began, path = time.monotonic(), self._job.folder / f"checkpoint-{step.index + 1:04d}.safetensors"
        write_checkpoint(path, step.checkpoint, self._engine_s())
        self._kept_at = time.monotonic()
        self._kept_step = step.index + 1
        self._keep_pause_s = max(self._keep_every_s, _KEEP_SHARE * (self._kept_at - began))
        self._pipe.send(Kept(self._kept_step, path))

    def _write_band(self, band: Band, image: ImageFile) -> None:
        rows = band.rows.numpy()
        image.write(band.top, rows)
        self._canvas.paint_rows(band.top, rows if rows.dtype == np.uint8 else (rows >> 8).astype(np.uint8))
        canvas, scale, band_px = self._plan.canvas, self._model.card.vae_scale, self._band_px
        decoded_px = min(band_px, canvas.height * scale - band.top) * canvas.width * scale
        report = BandWritten(
            band.top, len(rows), decoded_px, band.top // band_px + 1, self._count_bands(), self._take_lap()
        )
        self._pipe.send(report)

    def _obey(self) -> None:
        while self._pipe.poll():
            match self._pipe.recv():
                case Shown():
                    self._may_show = True
                case Stop(keep=True) if not self._is_denoised():
                    self._halting = True
                case Stop():
                    raise HaltedError(Halted(self._kept_step))
                case _:
                    pass

    def _is_denoised(self) -> bool:
        return self._stage is not None and self._kept_step == self._stage.total

    def _show(self) -> None:
        """Send changed cells, unless the consumer is still busy with the last ones."""
        now = time.monotonic()
        if self._may_show and now - self._shown_at >= _SHOW_EVERY_S:
            cells = self._canvas.take(_SHOW_BYTES)
            if cells:
                self._pipe.send(Previewed(cells))
                self._may_show, self._shown_at = False, now

    def _show_rest(self) -> None:
        """Let viewers see the last rows too, but not at any price."""
        deadline = time.monotonic() + _LAST_SHOW_S
        while (left_s := deadline - time.monotonic()) > 0:
            if not self._may_show:
                self._pipe.poll(left_s)
                self._obey()
            elif cells := self._canvas.take(_SHOW_BYTES):
                self._pipe.send(Previewed(cells))
                self._may_show = False
            else:
                return

    def _count_bands(self) -> int:
        return ceil(self._shown[0] / self._band_px)

    @property
    def _band_px(self) -> int:
        return self._plan.decode.tile_size * self._model.card.vae_scale

    def _take_lap(self) -> float:
        lap, self._lap = self._lap, time.monotonic()
        return self._lap - lap

    def _engine_s(self) -> float:
        return self._spent_s + time.monotonic() - self._began


def _read(path: Path | None) -> tuple[Checkpoint | None, float]:
    """A damaged checkpoint costs time, not the picture."""
    if path is None:
        return None, 0.0
    try:
        return read_checkpoint(path)
    except CheckpointError:
        _log.warning("the checkpoint is damaged: starting from the first step", exc_info=True)
        return None, 0.0
