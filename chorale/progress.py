"""How far a job is, from what it reports."""

from dataclasses import dataclass, field

from api_schemas.answers import Snapshot
from api_schemas.catalog import Cost
from api_schemas.events import (
    BandFinished,
    JobCanceled,
    JobDelayed,
    JobFailed,
    JobPreempted,
    JobQueued,
    JobResumed,
    JobStarted,
    JobSucceeded,
    JobWarned,
    StageStarted,
    StepCompleted,
    TilePreviewedData,
)
from api_schemas.generation import ResolvedRequest
from api_schemas.job import Progress
from chorale.protocol import Update

_STAGES = {"denoise": "singing", "decode": "decoding", "store": "storing"}
# Where each stage begins and ends on the one bar: decoding took a tenth of the time at 1536x1024.
_SPANS = {"denoise": (0.0, 0.88), "decode": (0.88, 0.99), "store": (0.99, 1.0)}


@dataclass(slots=True)
class JobProgress:
    """One line about a job; `eta_s` counts from the event that told it."""

    label: str = "waiting"
    fraction: float = 0.0
    step: int = 0
    steps: int = 0
    tiles: int = 0
    tiles_expected: int = 0
    eta_s: float | None = None
    level: int = 1
    levels: int = 1
    within_step: float = 0.0
    _furthest: int = 0
    _canvas_px: int = 1
    _glimpsed: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])

    def glimpse(self, cell: TilePreviewedData) -> None:
        """A part of the canvas shows the step that is being sung: a step of a large picture takes long."""
        if cell.stage == "denoise" and cell.step == self.step + 1:
            self._glimpsed[cell.left_px, cell.top_px] = cell.width_px * cell.height_px
            self.within_step = min(sum(self._glimpsed.values()) / self._canvas_px, 1.0)
            self._enter("denoise", self.step + self.within_step, self.steps)

    def note(self, update: Update) -> None:
        """Take one more event in."""
        match update:
            case JobQueued(data=data):
                self._begin(data.request, data.cost)
            case JobStarted():
                self.label = "starting"
            case JobResumed(data=data):
                self.label = "resuming"
                self._move_to(data.step)
            case JobPreempted():
                self.label, self.eta_s = "waiting", None
            case JobDelayed(data=data):
                self.label = f"waiting: {data.reason}"
            case StageStarted(data=data):
                self.level, self.levels = data.level, data.levels
                self._enter(data.stage, data.done, data.total)
            case StepCompleted(data=data):
                self._note_step(data.step, data.steps, data.tiles)
                self.eta_s = data.eta_s
            case BandFinished(data=data):
                self._enter("decode", data.bands_done, data.bands)
                self.eta_s = data.eta_s
            case JobSucceeded():
                self.label, self.fraction, self.eta_s = "done", 1.0, 0.0
            case JobFailed() | JobCanceled():
                self.label, self.eta_s = update.type.removeprefix("job."), None
            case JobWarned():
                pass  # it was made good
            case Snapshot(data=job):  # it stands for events that are gone
                self._begin(job.request, job.cost)
                if job.progress is not None:
                    self._catch_up(job.progress)

    def _begin(self, request: ResolvedRequest, cost: Cost) -> None:
        self.steps, self.tiles_expected = cost.steps or request.steps, cost.tiles
        self._canvas_px = request.width_px * request.height_px

    def _move_to(self, step: int) -> None:
        self.step, self.within_step = step, 0.0
        self._glimpsed.clear()

    def _note_step(self, step: int, steps: int, tiles: int) -> None:
        if step > self._furthest:  # a resumed job sings some steps again
            self.tiles += tiles
            self._furthest = step
        self.steps = steps
        self._move_to(step)
        self.tiles_expected = max(self.tiles_expected, self.tiles)
        self._enter("denoise", step, steps)

    def _enter(self, stage: str, done: float, total: int) -> None:
        begin, end = _SPANS[stage]
        self.label = _STAGES[stage]
        if stage == "denoise" and self.levels > 1:
            self.label += f" {self.level}/{self.levels}"
        self.fraction = max(self.fraction, begin + (end - begin) * done / max(total, 1))

    def _catch_up(self, progress: Progress) -> None:
        self.level, self.levels = progress.level, progress.levels
        self._enter(progress.stage, progress.done, progress.total)
        self._move_to(progress.done if progress.stage == "denoise" else self.steps)
        self._furthest = self.step
        self.tiles = self.tiles_expected * self.step // max(self.steps, 1)
        self.eta_s = progress.eta_s
