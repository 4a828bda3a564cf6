"""What the consumer and its engine process say to each other, pickled over a pipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from api_schemas.catalog import ModelCard
from api_schemas.errors import ErrorCode
from api_schemas.events import WarningCode
from api_schemas.generation import PicturePart, ResolvedRequest


@dataclass(frozen=True, slots=True)
class Generate:
    """Make this picture, from the checkpoint on if there is one; files go into `folder`.

    Args:
        inputs: the pictures that came with the job, PNG files in `folder`.
    """

    request: ResolvedRequest
    folder: Path
    checkpoint: Path | None
    inputs: dict[PicturePart, Path]


@dataclass(frozen=True, slots=True)
class Stop:
    """End early: with a checkpoint after the present step, or at once."""

    keep: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """The last previews were published: more may come."""


Command = Generate | Stop | Shown


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is in memory; `decode_s` is for one megapixel."""

    card: ModelCard
    tile_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be served; the process ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Began:
    """A canvas is about to be denoised, or, with all steps done, decoded.

    Args:
        step: steps of all canvases that are done; so many of `steps`.
        own_steps: of this canvas.
    """

    step: int
    steps: int
    bands: int
    level: int
    levels: int
    width_px: int
    height_px: int
    own_steps: int


@dataclass(frozen=True, slots=True)
class PreviewCell:
    """A rectangle of the picture, in pixels, and a JPEG of it that may be smaller."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int
    stage: Literal["denoise", "decode"]
    step: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Previewed:
    cells: tuple[PreviewCell, ...]


@dataclass(frozen=True, slots=True)
class Stepped:
    """`step` steps of all canvases are done; this one took `seconds`.

    Args:
        tiles: in this step.
        tiles_left: in all that follow.
    """

    step: int
    steps: int
    tiles: int
    tiles_left: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Ascending:
    """The way from one canvas to the next is long, and nothing else tells that it goes on."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint lies on disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class BandWritten:
    """Rows of the picture lie on disk.

    Args:
        decoded_px: pixels that `seconds` went into, with those beyond the picture.
    """

    top_px: int
    height_px: int
    decoded_px: int
    done: int
    bands: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Generated:
    """The whole picture lies at `path`, a BigTIFF; `engine_s` counts all attempts."""

    path: Path
    engine_s: float


@dataclass(frozen=True, slots=True)
class Halted:
    """Stopped as asked; `step` steps need not be done again."""

    step: int


@dataclass(frozen=True, slots=True)
class Broke:
    """The picture could not be made; the process goes on."""

    code: ErrorCode
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Warned:
    """Something went wrong and was made good."""

    code: WarningCode
    message: str


# The engine process ends so, plus the rank's number, when another rank has died.
LOST_RANK_EXIT = 100

Report = (
    Loaded
    | Refused
    | Began
    | Ascending
    | Previewed
    | Stepped
    | Kept
    | BandWritten
    | Warned
    | Generated
    | Halted
    | Broke
)
