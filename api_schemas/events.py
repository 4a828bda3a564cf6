"""All events of a job, as one tagged union. `seq` is the id in the job's Redis stream."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

from api_schemas.catalog import Cost, Dtype
from api_schemas.errors import JobError
from api_schemas.generation import ResolvedRequest

WarningCode = Literal[
    "batch_halved",
    "checkpoint_damaged",
    "compiling",
    "control_left_out",
    "decode_widened",
    "dtype_changed",
    "mask_scaled",
    "memory_changed",
    "prompt_cut",
    "region_faint",
    "unsigned",
    "untimed",
]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueuedData(_Data):
    request: ResolvedRequest
    cost: Cost
    key_id: str = Field(
        default="", description="Id of the API key that created the job; empty where no keys are used."
    )


class StartedData(_Data):
    worker: str
    execution: str = Field(description="Token of this attempt; events of earlier attempts are rejected.")


FORMER_PHASE = AliasChoices("phase", "stage")
"""Records and events that are stored already may have the second name."""


class PhaseStartedData(_Data):
    """A phase begins: denoise (once per stage of a cascade), decode or store."""

    phase: Literal["denoise", "decode", "store"] = Field(validation_alias=FORMER_PHASE)
    total: int = Field(description="Number of steps (over all stages), bands or files.")
    done: int = Field(default=0, description="How many of `total` are already done.")
    level: int = Field(default=1, description="Stage of the cascade; 1 is the smallest.")
    levels: int = Field(default=1, description="Number of stages.")
    width_px: int | None = Field(
        default=None,
        description="Width of the stage's canvas; the last canvas may be slightly larger than the picture.",
    )
    height_px: int | None = Field(default=None, description="Height of the stage's canvas.")
    steps: int | None = Field(default=None, description="Steps of this stage.")


class StepCompletedData(_Data):
    step: int = Field(description="Steps completed so far, over all stages.")
    steps: int
    tiles: int = Field(description="Tile predictions in this step.")
    eta_s: float | None = Field(description="Estimated seconds until the job ends.")


class TilePreviewedData(_Data):
    """A preview of one rectangle of the canvas; sent live, not stored in the log."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int
    phase: Literal["denoise", "decode"]
    step: int


class ResumedData(_Data):
    worker: str
    execution: str
    step: int = Field(description="Steps already done at the checkpoint.")


class DelayedData(_Data):
    reason: str
    retry_in_s: float


class WarnedData(_Data):
    """A problem that was recovered from; the job continues."""

    code: WarningCode
    message: str


class PreemptedData(_Data):
    step: int
    reason: str


class BandFinishedData(_Data):
    top_px: int
    height_px: int
    bands_done: int
    bands: int
    eta_s: float | None


class Result(_Data):
    """The committed picture; keys are paths in the object store."""

    image_key: str
    pyramid_key: str = Field(description="Prefix of image.dzi and image_files/.")
    inherited_pyramids: list[str] = Field(
        default=[],
        description="The same of the pictures that this one is a part of made again: tiles that it has in common with them"
        " are stored there; the nearest first.",
    )
    media_type: str
    width_px: int
    height_px: int
    size_bytes: int
    stored_bytes: int = Field(
        default=0,
        description="Size of all its files in the store: picture, deep zoom and final state; 0 where none was counted.",
    )
    sha256: str
    engine_s: float = Field(description="Engine time in seconds, summed over all attempts.")
    dtype: Dtype | None = Field(
        default=None,
        description="Type that the model's predictions and the decoder computed in; null in records older than it.",
    )


class SucceededData(_Data):
    result: Result


class FailedData(_Data):
    error: JobError


class CanceledData(_Data):
    reason: str


class ExpiredData(_Data):
    error: JobError


class Event(BaseModel):
    """Fields of every event. `seq` is empty in previews, and until the event is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: str = ""
    job_id: str
    attempt: int = Field(description="0 while queued, 1 for the first execution.")
    ts: float = Field(description="Unix time, seconds.")


class JobQueued(Event):
    type: Literal["job.queued"] = "job.queued"
    data: QueuedData


class JobStarted(Event):
    type: Literal["job.started"] = "job.started"
    data: StartedData


def _name_phase_started(_: str) -> Literal["phase.started"]:
    return "phase.started"


class PhaseStarted(Event):
    type: Annotated[
        Literal["phase.started", "stage.started"],  # the second was stored before phases had their name
        AfterValidator(_name_phase_started),
        WithJsonSchema({"const": "phase.started", "type": "string"}),
    ] = "phase.started"
    data: PhaseStartedData


class StepCompleted(Event):
    type: Literal["step.completed"] = "step.completed"
    data: StepCompletedData


class TilePreviewed(Event):
    type: Literal["tile.previewed"] = "tile.previewed"
    data: TilePreviewedData


class JobResumed(Event):
    type: Literal["job.resumed"] = "job.resumed"
    data: ResumedData


class JobDelayed(Event):
    type: Literal["job.delayed"] = "job.delayed"
    data: DelayedData


class JobWarned(Event):
    type: Literal["job.warned"] = "job.warned"
    data: WarnedData


class JobPreempted(Event):
    type: Literal["job.preempted"] = "job.preempted"
    data: PreemptedData


class BandFinished(Event):
    type: Literal["band.finished"] = "band.finished"
    data: BandFinishedData


class JobSucceeded(Event):
    type: Literal["job.succeeded"] = "job.succeeded"
    data: SucceededData


class JobFailed(Event):
    type: Literal["job.failed"] = "job.failed"
    data: FailedData


class JobCanceled(Event):
    type: Literal["job.canceled"] = "job.canceled"
    data: CanceledData


class JobExpired(Event):
    type: Literal["job.expired"] = "job.expired"
    data: ExpiredData


DurableEvent = Annotated[
    JobQueued
    | JobStarted
    | PhaseStarted
    | StepCompleted
    | JobResumed
    | JobDelayed
    | JobWarned
    | JobPreempted
    | BandFinished
    | JobSucceeded
    | JobFailed
    | JobCanceled
    | JobExpired,
    Field(discriminator="type"),
]

durable_event = TypeAdapter[DurableEvent](DurableEvent)
TERMINAL_TYPES = frozenset({"job.succeeded", "job.failed", "job.canceled", "job.expired"})
