"""One picture in the engine process: drives the engine's generator, reports, and obeys commands between tiles."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from api_schemas.events import WarnedData
from worker.color_sums import ColorSums, count_colors, fit_colors
from worker.engine.denoise import Checkpoint, Step, TilePredicted
from worker.engine.generate import FinalState, Progress, StageBegan
from worker.engine.plan import GenerationPlan
from worker.engine.stitch import Band
from worker.engine.vae.executor import Heartbeat
from worker.engine.warned import Warned
from worker.errors import DamagedFileError
from worker.planner import plan_generation
from worker.process.files import CheckpointWriter, ImageFile
from worker.process.generation import complete_plan, generate_job, prepare_source
from worker.process.preview_sender import PreviewSender
from worker.process.previews import PreviewCanvas
from worker.process.protocol import Generate, Generated, Levels, PreviewsPublished, StillWorking, Stop
from worker.process.ranks import RankJob, RankProcesses
from worker.process.reports import ProgressReports, warn
from worker.process.warmup import Ready
from worker.source import inherit_colors
from worker.state_files import EngineSetup, read_checkpoint, read_setup, write_final_state

_log = logging.getLogger(__name__)
_LAST_PREVIEWS_S = 2.0
_HEARTBEAT_S = 1.0


class StoppedError(Exception):
    """The consumer asked for the end."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def run_session(
    ready: Ready, job: Generate, pipe: Connection, ranks: RankProcesses, checkpoint_interval_s: float
) -> Generated:
    """Make one picture, on all ranks.

    Raises:
        StoppedError: the consumer asked for the end.
    """
    resume, spent_s, ready = _read_checkpoint(job.checkpoint, pipe, ready)
    model, request = ready.model, job.request
    bare = plan_generation(request, ready.card, ready.decode_memory, job.folder)
    source = prepare_source(job, ready.card)
    plan = complete_plan(bare, job, source)
    scale, shown = ready.card.vae_scale, (request.height_px, request.width_px)
    canvas = PreviewCanvas(plan.canvas.height, plan.canvas.width, scale, model.preview_map, shown)
    path, state = job.folder / "image.tif", job.folder / "state.safetensors"
    with ImageFile(path, *shown, request.bit_depth) as image:
        session = _Session(
            pipe,
            image,
            ColorSums(shown, request.bit_depth) if request.upscale else None,
            ProgressReports(plan, scale, request.height_px),
            PreviewSender(canvas, pipe),
            CheckpointWriter(job.folder, checkpoint_interval_s, resume.step if resume else 0, ready.setup),
            spent_s,
        )
        part = RankJob(job, bare, job.checkpoint if resume else None, source)
        with (
            ranks.begin(part) as group,
            closing(generate_job(model, job, plan, resume, group, source)) as events,
        ):
            for event in events:
                session.handle(event)
    colors = None
    if source is not None and session.colors is not None:
        whole = count_colors(source.read_strips(), source.shown, source.bit_depth)
        colors = fit_colors(session.colors, whole)
    assert session.final is not None
    write_final_state(state, session.final, colors or inherit_colors(request, source))
    session.send_last_previews()
    levels = Levels(source.levels, *source.size) if source and source.levels else None
    return Generated(
        path, state, session.engine_s, colors, _find_changed(plan, scale), levels, ready.card.dtype
    )


def _find_changed(plan: GenerationPlan, scale: int) -> tuple[int, int, int, int] | None:
    part = plan.paste and plan.paste.part
    if part is None:
        return None
    sides = (part.left, part.top, part.left + part.width, part.top + part.height)
    left, top, right, bottom = (side * scale for side in sides)
    return left, top, right, bottom


def _read_checkpoint(
    path: Path | None, pipe: Connection, ready: Ready
) -> tuple[Checkpoint | None, float, Ready]:
    """A checkpoint that cannot be read costs time, not the picture.

    Returns:
        it, the seconds that went into it, and the engine as it was when it was written, as far as it can be.
    """
    if path is None:
        return None, 0.0, ready
    try:
        (checkpoint, spent_s), before = read_checkpoint(path), read_setup(path)
    except DamagedFileError as error:
        _log.warning("starting over: %s", error)
        pipe.send(WarnedData(code="checkpoint_damaged", message=f"starting over: {error}"))
        return None, 0.0, ready
    ready = ready.go_on_as(before)
    for warned in _tell_changes(checkpoint.step, before, ready.setup):
        pipe.send(warned)
    return checkpoint, spent_s, ready


def _tell_changes(steps: int, before: EngineSetup, now: EngineSetup) -> Iterator[WarnedData]:
    """What of the engine that wrote a checkpoint cannot be here."""
    if None not in (before.dtype, now.dtype) and before.dtype != now.dtype:
        message = f"going on in {now.dtype} after {steps} steps in {before.dtype}: pixels may differ a little"
        yield WarnedData(code="dtype_changed", message=message)
    if now.memory != before.memory is not None:
        message = (
            f"going on with {now.memory} after {steps} steps with {before.memory}: pixels may differ a little"
        )
        yield WarnedData(code="memory_changed", message=message)


class _Session:
    """What happens with each of the engine's events.

    Args:
        colors: of the rows, where they are asked for.
        spent_s: engine time of the attempts before.
    """

    def __init__(
        self,
        pipe: Connection,
        image: ImageFile,
        colors: ColorSums | None,
        reports: ProgressReports,
        previews: PreviewSender,
        checkpoints: CheckpointWriter,
        spent_s: float,
    ) -> None:
        self._pipe, self._image, self.colors = pipe, image, colors
        self.final: FinalState | None = None
        self._reports, self._previews, self._checkpoints = reports, previews, checkpoints
        self._began_at = time.monotonic() - spent_s
        self._heartbeat_at = time.monotonic()
        self._is_stopping = self._is_denoised = False

    def handle(self, event: Progress) -> None:
        """
        Raises:
            StoppedError: the consumer asked for the end.
        """
        if not isinstance(event, TilePredicted | Step):
            self._previews.paint_arrived(wait=True)  # what follows belongs to another canvas
        match event:
            case StageBegan():
                self._begin_stage(event)
            case Heartbeat():
                self._pass_on_heartbeat()
            case TilePredicted():
                self._reports.note_tile()
                self._previews.paint_tile(event)
            case Step():
                self._complete_step(event)
            case FinalState():
                self.final = event  # with its colours, which only the finished rows tell
            case Band():
                self._write_band(event)
                self._previews.paint_band(event)
                self._pipe.send(self._reports.finish_band(event))
            case Warned():
                _log.warning("%s", event.message)
                self._pipe.send(warn(event))
        self._handle_commands()
        self._previews.send_if_due()

    def _write_band(self, band: Band) -> None:
        rows = band.rows.numpy()
        self._image.write(band.top, rows)
        if self.colors is not None:
            self.colors.add(band.top, rows)

    def _pass_on_heartbeat(self) -> None:
        """Decoding has thousands, and each costs the consumer a question to Redis."""
        if time.monotonic() - self._heartbeat_at >= _HEARTBEAT_S:
            self._pipe.send(StillWorking())
            self._heartbeat_at = time.monotonic()

    @property
    def engine_s(self) -> float:
        """Engine time of all attempts."""
        return time.monotonic() - self._began_at

    def send_last_previews(self) -> None:
        """Send what has changed, but do not wait long until the consumer takes it.

        Raises:
            StoppedError: the consumer asked for the end.
        """
        deadline = time.monotonic() + _LAST_PREVIEWS_S
        while (left_s := deadline - time.monotonic()) > 0:
            if self._previews.is_waiting:
                self._pipe.poll(left_s)
                self._handle_commands()
            elif not self._previews.send():
                return

    def _begin_stage(self, stage: StageBegan) -> None:
        done = self._checkpoints.step
        self._is_denoised = done == stage.total
        self._previews.resize(stage.height, stage.width)
        if report := self._reports.start_stage(stage, done):
            self._pipe.send(report)

    def _complete_step(self, step: Step) -> None:
        done, is_last = step.index + 1, step.index + 1 == step.steps
        self._pipe.send(self._reports.complete_step(step))
        if is_last:
            self._pipe.send(self._reports.start_decoding())
        if is_last or self._is_stopping or self._checkpoints.is_due:
            self._pipe.send(self._checkpoints.write(step.checkpoint, self.engine_s))
        if is_last:
            self._previews.paint_arrived(wait=True)
            self._is_denoised = True
        if self._is_stopping:
            raise StoppedError(done)

    def _handle_commands(self) -> None:
        while self._pipe.poll():
            match self._pipe.recv():
                case PreviewsPublished():
                    self._previews.confirm()
                case Stop(finish_step=True) if not self._is_denoised:
                    self._is_stopping = True
                case Stop():
                    raise StoppedError(self._checkpoints.step)
                case _:
                    pass
