"""What can go wrong in the service, and the one table that turns it into HTTP.

ServiceError
├── BadRequestError            the request's form is wrong
├── InvalidRequestError        a value is refused; names field, value and what is allowed
├── BodyTooLargeError
├── AmbiguousLengthError       a body of two lengths
├── BodyTooSlowError
├── JobNotFoundError
├── JobUnreadableError         the stored record of the job is damaged, or of a later version
├── FileMissingError           no such tile or page
├── ModelMissingError          no card of this name
├── WebhookNotFoundError       no such webhook or delivery
├── ForbiddenError             wrong host or origin, or a link that was altered or is over
├── ConflictError              the first request with this Idempotency-Key is still in flight
├── IdempotencyMismatchError   same Idempotency-Key, other body
├── NotReadyError              the job has no picture yet
├── ResultNeverError           the job ended without a picture
├── JobFailedError             the job that a request waits for has failed
├── ResultExpiredError         the picture is no longer stored
├── ResultDamagedError         what is stored is not what the job has made
├── RangeNotSatisfiableError
├── QueueFullError
├── NoModelError
├── NoSpaceError                the store's disk has no space for the job
└── UnavailableError           Redis or the object store is away, or the machine too busy
"""

from api_schemas.errors import ErrorCode, FieldError


class ServiceError(Exception):
    """Base of all errors that are sent to clients."""

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers or {}
        self.errors: list[FieldError] = []


class _RetryLaterError(ServiceError):
    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)})


class BadRequestError(ServiceError): ...


class InvalidRequestError(ServiceError):
    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{each.field}: {each.allowed}" for each in errors))
        self.errors = errors


class BodyTooLargeError(ServiceError): ...


class AmbiguousLengthError(ServiceError): ...


class BodyTooSlowError(ServiceError): ...


class JobNotFoundError(ServiceError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id[:64]!r}")


class JobUnreadableError(ServiceError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"stored record unreadable: job {job_id[:64]!r}; the service's log says why")


class FileMissingError(ServiceError): ...


class ModelMissingError(ServiceError): ...


class WebhookNotFoundError(ServiceError): ...


class ForbiddenError(ServiceError): ...


class ConflictError(_RetryLaterError): ...


class IdempotencyMismatchError(ServiceError): ...


class NotReadyError(_RetryLaterError): ...


class ResultExpiredError(ServiceError): ...


class ResultDamagedError(ServiceError): ...


class ResultNeverError(ServiceError):
    """The job ended without a picture."""


class JobFailedError(ServiceError): ...


class RangeNotSatisfiableError(ServiceError):
    def __init__(self, size: int) -> None:
        super().__init__(f"the picture has {size} bytes", headers={"Content-Range": f"bytes */{size}"})


class QueueFullError(_RetryLaterError): ...


class NoModelError(_RetryLaterError): ...


class NoSpaceError(_RetryLaterError): ...


class UnavailableError(_RetryLaterError): ...


# exception -> (status, code, whether the same request may succeed later)
STATUS: dict[type[ServiceError], tuple[int, ErrorCode, bool]] = {
    BadRequestError: (400, "invalid_json", False),
    InvalidRequestError: (422, "invalid_request", False),
    BodyTooLargeError: (413, "invalid_request", False),
    AmbiguousLengthError: (400, "invalid_request", False),
    BodyTooSlowError: (408, "timeout", False),
    JobNotFoundError: (404, "not_found", False),
    JobUnreadableError: (410, "record_unreadable", False),
    FileMissingError: (404, "not_found", False),
    ModelMissingError: (404, "model_not_found", False),
    WebhookNotFoundError: (404, "not_found", False),
    ForbiddenError: (403, "forbidden", False),
    ConflictError: (409, "conflict", True),
    IdempotencyMismatchError: (422, "idempotency_mismatch", False),
    NotReadyError: (409, "not_ready", True),
    ResultNeverError: (409, "not_ready", False),
    JobFailedError: (500, "engine_failed", False),
    ResultExpiredError: (410, "result_expired", False),
    ResultDamagedError: (410, "result_damaged", False),
    RangeNotSatisfiableError: (416, "range_not_satisfiable", False),
    QueueFullError: (503, "queue_full", True),
    NoModelError: (503, "no_model", True),
    NoSpaceError: (503, "disk_full", True),
    UnavailableError: (503, "service_unavailable", True),
}

# The framework's own refusals, by status.
HTTP_CODES: dict[int, ErrorCode] = {
    400: "invalid_json",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "invalid_request",
    422: "invalid_request",
    503: "service_unavailable",
}
INTERNAL_ERROR: tuple[int, ErrorCode, bool] = (500, "internal_error", False)
