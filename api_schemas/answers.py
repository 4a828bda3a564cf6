"""Response bodies, built from a job, its queue position and its URLs."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.catalog import ModelCard
from api_schemas.job import Job


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobUrls(_Answer):
    """URLs of one job, as paths on the server that answered."""

    self: str
    cancel: str
    events: str = Field(description="Server-sent events.")
    ws: str = Field(description="WebSocket: the same events, with previews as binary messages.")
    result: str = Field(description="The finished picture, once the job has succeeded.")
    deep_zoom: str = Field(description="Deep Zoom descriptor; available while the job runs.")
    download: str | None = Field(None, description="Expiring link to the picture; needs no credentials.")

    @classmethod
    def below(cls, prefix: str, job_id: str, download: str | None = None) -> "JobUrls":
        """Those of a job.

        Args:
            prefix: path, or scheme, host and path, below which the service is.
        """
        base = f"{prefix}/v1/jobs/{job_id}"
        return cls(
            self=base,
            cancel=f"{base}/cancel",
            events=f"{base}/events",
            ws=re.sub("^http", "ws", base) + "/ws",
            result=f"{base}/image",
            deep_zoom=f"{base}/image.dzi",
            download=download,
        )


class JobView(Job):
    """A job with its queue position, estimated time and URLs."""

    queue_position: int | None = Field(
        None, description="Number of jobs ahead of this one while it is queued."
    )
    eta_s: float | None = Field(None, description="Estimated seconds until the job ends; null if unknown.")
    children: list[str] = Field(
        default=[], description="Jobs that were derived from it, oldest first; empty where jobs are listed."
    )
    urls: JobUrls


class JobPage(_Answer):
    """One page of jobs, newest first."""

    data: list[JobView]
    next: str | None = Field(description="Cursor of the next page; null on the last page.")


class ModelView(ModelCard):
    """A card with what OpenAI's clients read of a model."""

    id: str = Field(description="Its name.")
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Unix time; 0, since cards do not tell it.")
    owned_by: str = "chorale"


class ModelList(_Answer):
    object: Literal["list"] = "list"
    data: list[ModelView]


Reach = Literal["ok", "unreachable", "unwritable", "full"]


class PartReadiness(_Answer):
    """One part of the service."""

    name: str
    ready: bool
    message: str = Field(description="What is wrong; empty if nothing is.")


class Readiness(_Answer):
    """Whether a job posted now would run, part by part."""

    ready: bool
    queue: Reach
    store: Reach
    workers: list[str] = Field(
        description="Names of the workers that are connected and have a fresh heartbeat."
    )
    models: list[str] = Field(description="Models that these workers serve.")
    degraded: dict[str, str] = Field(
        default={},
        description="Workers that lost a device and continue with the rest, or report no progress: worker name to message.",
    )
    paused: dict[str, str] = Field(
        default={},
        description="Workers that take no jobs, since their disk or the store is full or cannot be written:"
        " worker name to `code: message`. They go on by themselves.",
    )
    parts: list[PartReadiness] = Field(default=[], description="All parts, each with what is wrong with it.")
    background: dict[str, str] = Field(
        default={},
        description="Background tasks of this API process that failed and are started again: task name to message."
        " Jobs are accepted and run meanwhile; live events may come late.",
    )


class CountUse(_Answer):
    """Use of one limit of an API key."""

    used: int
    limit: int | None = Field(description="null: unlimited.")


class WorkUse(_Answer):
    """Use of megapixel-steps."""

    used: float = Field(
        description="Of jobs created within the window; canceled or expired before they began, they do not count."
    )
    limit: float | None = Field(description="null: unlimited.")
    window_s: int = Field(description="The window ends now: what is used counts for so many seconds.")
    free_at: float | None = Field(
        description="Unix time when all that is used now will be free again; null if nothing is used."
    )


class CallUse(CountUse):
    """Use of calls. They are a bucket that is refilled one by one, `limit` in a window; not counted while unlimited."""

    window_s: int
    free_at: float | None = Field(
        description="Unix time when all that is used now will be free again; null if nothing is used."
    )


class Usage(_Answer):
    """What an API key has used, and its limits."""

    key_id: str
    calls: CallUse
    concurrent_jobs: CountUse = Field(description="Jobs that workers have; those over the limit wait.")
    queued_jobs: CountUse = Field(description="Jobs that wait.")
    megapixel_steps: WorkUse
    store_bytes: CountUse = Field(description="Files of all jobs that are kept.")


class Snapshot(_Answer):
    """The current state of a job, sent in place of events that are no longer stored.

    The event that `seq` names follows it, so that a terminal event is always seen.
    """

    type: Literal["snapshot"] = "snapshot"
    seq: str
    job_id: str
    data: Job
