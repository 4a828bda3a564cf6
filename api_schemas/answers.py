"""Bodies that the service answers with, built from a job, its place in the queue and its addresses."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.catalog import ModelCard
from api_schemas.job import Job


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobUrls(_Answer):
    """Where everything about one job is; paths on the server that answered."""

    self: str
    cancel: str
    events: str = Field(description="Server-sent events.")
    ws: str = Field(description="WebSocket: the same events, and previews as binary frames.")
    result: str = Field(description="The picture itself, once the job has succeeded.")
    deep_zoom: str = Field(description="Deep Zoom descriptor, also while the job runs.")
    download: str | None = Field(None, description="Expiring link to the picture that needs no credentials.")


class JobView(Job):
    """A job as clients see it."""

    queue_position: int | None = Field(None, description="Jobs to be started before this one, while queued.")
    eta_s: float | None = Field(None, description="Seconds until the job ends, where that can be told.")
    urls: JobUrls


class JobPage(_Answer):
    """Jobs, newest first."""

    data: list[JobView]
    next: str | None = Field(description="Cursor of the next page, or null at the end.")


class ModelList(_Answer):
    data: list[ModelCard]


class Readiness(_Answer):
    """Whether a job posted now would be made, part by part."""

    ready: bool
    queue: Literal["ok", "unreachable"]
    store: Literal["ok", "unreachable"]
    workers: list[str] = Field(description="Names of the workers whose heartbeat is fresh.")
    models: list[str] = Field(description="Models that these workers serve.")
    degraded: dict[str, str] = Field(
        default={}, description="Workers that go on with less than they were given, and what they lost."
    )


class Snapshot(_Answer):
    """Sent instead of events that are no longer kept.

    The event that `seq` names follows it, so that a terminal event is always seen.
    """

    type: Literal["snapshot"] = "snapshot"
    seq: str
    job_id: str
    data: Job
