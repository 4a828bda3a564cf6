"""Messages between the consumer and its engine process, pickled over a pipe.

What clients read is made once, as the schemas' data; a report around it adds what the consumer needs to know.
"""

from dataclasses import dataclass
from pathlib import Path

from api_schemas.catalog import Dtype, ModelCard
from api_schemas.errors import ErrorCode
from api_schemas.events import (
    BandFinishedData,
    PhaseStartedData,
    StepCompletedData,
    TilePreviewedData,
    WarnedData,
)
from api_schemas.generation import PicturePart, ResolvedRequest
from worker.colors import ColorFix


@dataclass(frozen=True, slots=True)
class Generate:
    """Make this picture, from the checkpoint on if there is one; files are written to `folder`.

    Args:
        inputs: the pictures that came with the job, PNG files in `folder`; the source may be of another kind.
        state: kept final state of the job that it begins with.
    """

    request: ResolvedRequest
    folder: Path
    checkpoint: Path | None
    inputs: dict[PicturePart, Path]
    state: Path | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End the job early: with a checkpoint after the present step, or at once."""

    finish_step: bool


@dataclass(frozen=True, slots=True)
class PreviewsPublished:
    """The last previews were published, so the engine process may send more."""


Command = Generate | Stop | PreviewsPublished


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The model is in memory.

    Args:
        tile_s: seconds per tile prediction.
        decode_s: seconds to decode one megapixel.
        digest: of its files, if the settings ask for it.
    """

    card: ModelCard
    tile_s: float
    decode_s: float
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ModelRefused:
    """The model cannot be served; the process ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class PreviewCell:
    """A rectangle of the picture, and a JPEG of it that may have fewer pixels."""

    data: TilePreviewedData
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class CellsPreviewed:
    """Parts of the preview have changed."""

    cells: tuple[PreviewCell, ...]


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step is done; the consumer adds the time left.

    Args:
        work: of this step, in guided tiles; `work_left` of all steps that follow.
        seconds: that this step took.
    """

    data: StepCompletedData
    work: float
    work_left: float
    seconds: float


@dataclass(frozen=True, slots=True)
class BandReport:
    """Rows of the picture are on disk; the consumer adds the time left.

    Args:
        decoded_px: pixels that were decoded for it, with those beyond the picture.
        seconds: that this took.
    """

    data: BandFinishedData
    decoded_px: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StillWorking:
    """The job goes on, though a long time passes between two other reports."""


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint after `step` steps is on disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Levels:
    """How much of each pixel was inpainted, 0 to 255: one byte each, (height, width); the picture is its top left part."""

    path: Path
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Generated:
    """The picture is made.

    Args:
        path: of the whole picture, a BigTIFF.
        state: file of the final state, as `write_final_state` says.
        engine_s: seconds of all attempts.
        colors: that its rows are still to be corrected by.
        changed: (left, top, right, bottom) outside of which it is the picture that it begins with; None: it is another.
        levels: what of it was inpainted, where `changed` is known.
        dtype: that predictions were computed in.
    """

    path: Path
    state: Path
    engine_s: float
    colors: ColorFix | None = None
    changed: tuple[int, int, int, int] | None = None
    levels: Levels | None = None
    dtype: Dtype | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The job ended early, as asked; `step` steps need not be done again."""

    step: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The picture could not be made; the process can go on with the next."""

    code: ErrorCode
    message: str
    retryable: bool


# The engine process ends with this exit code, plus the rank's number, when another rank has died.
LOST_RANK_EXIT = 100

Report = (
    ModelLoaded
    | ModelRefused
    | PhaseStartedData
    | StepReport
    | BandReport
    | WarnedData
    | StillWorking
    | CellsPreviewed
    | CheckpointWritten
    | Generated
    | Stopped
    | Failed
)
