"""Progress of a job, computed from its events."""

from dataclasses import dataclass, field

from api_schemas.answers import Snapshot
from api_schemas.catalog import Cost
from api_schemas.events import (
    BandFinished,
    JobCanceled,
    JobDelayed,
    JobExpired,
    JobFailed,
    JobPreempted,
    JobQueued,
    JobResumed,
    JobStarted,
    JobSucceeded,
    JobWarned,
    PhaseStarted,
    StepCompleted,
    TilePreviewedData,
)
from api_schemas.generation import ResolvedRequest
from api_schemas.job import Progress
from chorale.protocol import Update

_PHASES = {"denoise": "denoising", "decode": "decoding", "store": "storing"}
# Where each phase begins and ends on the bar: decoding took a tenth of the time at 1536x1024.
_SPANS = {"denoise": (0.0, 0.88), "decode": (0.88, 0.99), "store": (0.99, 1.0)}


@dataclass(slots=True)
class JobProgress:
    """State of the progress bar; `eta_s` counts from the event that reported it."""

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
        """Count previews towards the current step: a step of a large picture takes long."""
        if cell.phase == "denoise" and cell.step == self.step + 1:
            self._glimpsed[cell.left_px, cell.top_px] = cell.width_px * cell.height_px
            self.within_step = min(sum(self._glimpsed.values()) / self._canvas_px, 1.0)
            self._enter("denoise", self.step + self.within_step, self.steps)

    def apply(self, update: Update) -> None:
        """Update the state by one event."""
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
            case PhaseStarted(data=data):
                self.level, self.levels = data.level, data.levels
                self._enter(data.phase, data.done, data.total)
            case StepCompleted(data=data):
                self._complete_step(data.step, data.steps, data.tiles)
                self.eta_s = data.eta_s
            case BandFinished(data=data):
                self._enter("decode", data.bands_done, data.bands)
                self.eta_s = data.eta_s
            case JobSucceeded():
                self.label, self.fraction, self.eta_s = "done", 1.0, 0.0
                self.tiles_expected = self.tiles  # the other was an estimate
            case JobFailed() | JobCanceled() | JobExpired():
                self.label, self.eta_s = update.type.removeprefix("job."), None
            case JobWarned():
                pass  # the job continues
            case Snapshot(data=job):  # sent in place of events that are no longer stored
                self._begin(job.request, job.cost)
                if job.progress is not None:
                    self._catch_up(job.progress)

    def _begin(self, request: ResolvedRequest, cost: Cost) -> None:
        self.steps, self.tiles_expected = cost.steps or request.steps, cost.tiles
        self._canvas_px = request.width_px * request.height_px

    def _move_to(self, step: int) -> None:
        self.step, self.within_step = step, 0.0
        self._glimpsed.clear()

    def _complete_step(self, step: int, steps: int, tiles: int) -> None:
        if step > self._furthest:  # a resumed job repeats some steps
            self.tiles += tiles
            self._furthest = step
        self.steps = steps
        self._move_to(step)
        self.tiles_expected = max(self.tiles_expected, self.tiles)
        self._enter("denoise", step, steps)

    def _enter(self, phase: str, done: float, total: int) -> None:
        begin, end = _SPANS[phase]
        self.label = _PHASES[phase]
        if phase == "denoise" and self.levels > 1:
            self.label += f" {self.level}/{self.levels}"
        self.fraction = max(self.fraction, begin + (end - begin) * done / max(total, 1))

    def _catch_up(self, progress: Progress) -> None:
        self.level, self.levels = progress.level, progress.levels
        self._enter(progress.phase, progress.done, progress.total)
        self._move_to(progress.done if progress.phase == "denoise" else self.steps)
        self._furthest = self.step
        self.tiles = self.tiles_expected * self.step // max(self.steps, 1)
        self.eta_s = progress.eta_s
