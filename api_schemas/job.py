"""A job's state: a fold over its events (deploy/decisions/0002)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.catalog import Cost
from api_schemas.errors import JobError
from api_schemas.events import (
    FORMER_PHASE,
    BandFinished,
    DurableEvent,
    JobCanceled,
    JobExpired,
    JobFailed,
    JobPreempted,
    JobQueued,
    JobResumed,
    JobStarted,
    JobSucceeded,
    PhaseStarted,
    Result,
    StepCompleted,
    durable_event,
)
from api_schemas.generation import ResolvedRequest

JobStatus = Literal["queued", "processing", "succeeded", "failed", "canceled", "expired"]
TERMINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "canceled", "expired"})


class Progress(BaseModel):
    """Progress of a running job within its current phase."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Literal["denoise", "decode", "store"] = Field(validation_alias=FORMER_PHASE)
    done: int
    total: int
    eta_s: float | None = None
    level: int = Field(default=1, description="Stage of the cascade; 1 is the smallest.")
    levels: int = 1


class Job(BaseModel):
    """State of one job, folded from its events. `seq` is the id of the last one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    status: JobStatus
    request: ResolvedRequest
    cost: Cost
    key_id: str = Field(
        default="", description="Id of the API key that created it; empty where no keys are used."
    )
    attempt: int = 0
    created_at: float = Field(description="Unix time in seconds, like `started_at` and `finished_at`.")
    started_at: float | None = None
    finished_at: float | None = None
    progress: Progress | None = None
    result: Result | None = None
    error: JobError | None = None
    seq: str = ""


def begin(event: JobQueued) -> Job:
    """The state after the first event of a log."""
    return Job(
        id=event.job_id,
        status="queued",
        request=event.data.request,
        cost=event.data.cost,
        key_id=event.data.key_id,
        created_at=event.ts,
        seq=event.seq,
    )


def apply(job: Job, event: DurableEvent) -> Job:
    """The state after one more event; events after a terminal one change nothing."""
    if job.status in TERMINAL:
        return job
    return job.model_copy(update=_changes(job, event) | {"seq": event.seq, "attempt": event.attempt})


def _changes(job: Job, event: DurableEvent) -> dict[str, object]:
    match event:
        case JobStarted() | JobResumed():
            return {"status": "processing", "started_at": job.started_at or event.ts}
        case JobPreempted():
            return {"status": "queued"}
        case JobSucceeded():
            return _ending("succeeded", event.ts) | {"result": event.data.result}
        case JobFailed():
            return _ending("failed", event.ts) | {"error": event.data.error}
        case JobCanceled():
            return _ending("canceled", event.ts)
        case JobExpired():
            return _ending("expired", event.ts) | {"error": event.data.error}
        case _:
            return _progress(job, event)


def _ending(status: JobStatus, ts: float) -> dict[str, object]:
    return {"status": status, "finished_at": ts, "progress": None}


def _progress(job: Job, event: DurableEvent) -> dict[str, object]:
    match event:
        case PhaseStarted(data=data):
            return {
                "progress": Progress(
                    phase=data.phase,
                    done=data.done,
                    total=data.total,
                    level=data.level,
                    levels=data.levels,
                )
            }
        case StepCompleted(data=data):
            changes = {"phase": "denoise", "done": data.step, "total": data.steps, "eta_s": data.eta_s}
            progress = job.progress or Progress(phase="denoise", done=0, total=0)
            return {"progress": progress.model_copy(update=changes)}
        case BandFinished(data=data):
            return {
                "progress": Progress(phase="decode", done=data.bands_done, total=data.bands, eta_s=data.eta_s)
            }
        case _:
            return {}


def find_deadline(job: Job) -> float | None:
    """Unix time at which the job expires, unless it has started or ended by then; None: it does not."""
    start_s, finish_s = _list_limits(job)
    limits = [limit for limit in (start_s, finish_s) if limit is not None]
    return job.created_at + min(limits) if limits else None


def explain_expiry(job: Job) -> JobError:
    """Which deadline the job has missed, once `find_deadline` has passed."""
    start_s, finish_s = _list_limits(job)
    if finish_s is None or (start_s is not None and start_s <= finish_s):
        message = f"it had not started within {start_s:g} s (start_within_s)"
    else:
        message = f"it had not ended within {finish_s:g} s (finish_within_s)"
    return JobError(code="deadline_missed", message=message, retryable=True)


def _list_limits(job: Job) -> tuple[float | None, float | None]:
    """Of its start, once it has started None, and of its end, in seconds after its creation."""
    return (job.request.start_within_s if job.started_at is None else None), job.request.finish_within_s


def rebuild_end(job: Job) -> DurableEvent | None:
    """The last event of a job that has ended, where the stored one cannot be read; None if it has not ended."""
    told: dict[JobStatus, object] = {
        "succeeded": {"result": job.result},
        "failed": {"error": job.error},
        "canceled": {"reason": "its event cannot be read"},
        "expired": {"error": job.error},
    }
    if job.status not in told:
        return None
    ts = job.finished_at or job.created_at
    about = {"type": f"job.{job.status}", "job_id": job.id, "attempt": job.attempt, "ts": ts}
    return durable_event.validate_python(about | {"data": told[job.status]})


def fold(events: list[DurableEvent]) -> Job:
    """The state after a whole log.

    Raises:
        ValueError: the log does not begin with `job.queued`.
    """
    first, *rest = events
    if not isinstance(first, JobQueued):
        raise ValueError(f"a log begins with job.queued, not {first.type}")
    job = begin(first)
    for event in rest:
        job = apply(job, event)
    return job
