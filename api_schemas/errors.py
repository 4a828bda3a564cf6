"""Error codes and the problem body (RFC 9457) that every route answers with."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ErrorCode = Literal[
    "invalid_json",
    "invalid_form",
    "invalid_request",
    "not_found",
    "model_not_found",
    "method_not_allowed",
    "conflict",
    "idempotency_mismatch",
    "not_ready",
    "job_canceled",
    "result_expired",
    "result_damaged",
    "record_unreadable",
    "range_not_satisfiable",
    "queue_full",
    "rate_limited",
    "quota_exceeded",
    "no_model",
    "service_unavailable",
    "forbidden",
    "unauthenticated",
    "scope_missing",
    "internal_error",
    # reported by job.failed events
    "input_missing",
    "input_damaged",
    "model_refused",
    "engine_failed",
    "non_finite_latent",
    "out_of_memory",
    "storage_unavailable",
    "disk_full",
    "disk_unwritable",
    "signing_unavailable",
    "timeout",
    "too_many_attempts",
    # reported by job.expired events
    "deadline_missed",
]


class FieldError(BaseModel):
    """One rejected value."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="Dotted path of the field, e.g. `advanced.num_modules`.")
    value: str = Field(description="The rejected value as JSON, truncated to 200 characters.")
    allowed: str = Field(description="Accepted values.")


class Problem(BaseModel):
    """RFC 9457 body, media type application/problem+json."""

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: ErrorCode
    errors: list[FieldError] = []
    request_id: str
    retryable: bool = False


class JobError(BaseModel):
    """Why a job ended without a picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: ErrorCode
    message: str
    retryable: bool
