"""What can go wrong in the service, and the one table that turns it into HTTP.

ServiceError
├── BadRequestError            the request's body is no JSON
├── InvalidFormError           it is no form, where one is announced
├── InvalidRequestError        a value is refused; names field, value and what is allowed
├── BodyTooLargeError
├── AmbiguousLengthError       a body of two lengths
├── BodyTooSlowError
├── JobNotFoundError
├── JobUnreadableError         the stored record of the job is damaged, or of a later version
├── FileMissingError           no such tile or page
├── WebhookNotFoundError       no such webhook or delivery
├── ModelMissingError          no card of this name
├── ForbiddenError             wrong host or origin, or a link that was altered or is over
├── UnauthenticatedError       no API key, or none that is accepted
├── ScopeMissingError          the key is not for this; names the scope
├── ConflictError              the first request with this Idempotency-Key is still in flight
├── IdempotencyMismatchError   same Idempotency-Key, other body
├── NotReadyError              the job has no picture yet
├── ResultNeverError           the job ended without a picture
├── JobFailedError             the job that a request waits for has failed
├── JobCanceledError           it was canceled
├── ResultExpiredError         the picture is no longer stored
├── ResultDamagedError         what is stored is not what the job has made
├── RangeNotSatisfiableError
├── QueueFullError
├── RateLimitedError           more calls than the API key may make
├── QuotaExceededError         more work or bytes than the API key may have
├── NoModelError
├── NoSpaceError                the store's disk has no space for the job
└── UnavailableError           Redis or the object store is away, or the machine too busy
"""

from collections.abc import Iterable

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


class InvalidFormError(ServiceError): ...


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


class WebhookNotFoundError(ServiceError): ...


class ModelMissingError(ServiceError): ...


class ForbiddenError(ServiceError): ...


class UnauthenticatedError(ServiceError):
    """Names its challenge as RFC 6750, 3 has it.

    Args:
        given: whether there was a credential.
    """

    def __init__(self, detail: str, *, given: bool) -> None:
        error = ', error="invalid_token"' if given else ""
        super().__init__(detail, headers={"WWW-Authenticate": f'Bearer realm="chorale"{error}'})


class ScopeMissingError(ServiceError):
    def __init__(self, needed: str, held: Iterable[str]) -> None:
        challenge = f'Bearer realm="chorale", error="insufficient_scope", scope="{needed}"'
        detail = f"this needs the scope {needed}; the key has {', '.join(sorted(held)) or 'none'}"
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class ConflictError(_RetryLaterError): ...


class IdempotencyMismatchError(ServiceError): ...


class NotReadyError(_RetryLaterError): ...


class ResultExpiredError(ServiceError): ...


class ResultDamagedError(ServiceError): ...


class ResultNeverError(ServiceError):
    """The job ended without a picture."""


class JobFailedError(ServiceError): ...


class JobCanceledError(ServiceError): ...


class RangeNotSatisfiableError(ServiceError):
    def __init__(self, size: int) -> None:
        super().__init__(f"the picture has {size} bytes", headers={"Content-Range": f"bytes */{size}"})


class QueueFullError(_RetryLaterError): ...


class _LimitError(ServiceError):
    """A limit of an API key.

    Args:
        error: names the limit, what is used and what is allowed.
        retry_after_s: None where no time can be told.
    """

    def __init__(self, detail: str, error: FieldError, *, retry_after_s: int | None) -> None:
        super().__init__(detail, headers={} if retry_after_s is None else {"Retry-After": str(retry_after_s)})
        self.errors = [error]


class RateLimitedError(_LimitError): ...


class QuotaExceededError(_LimitError): ...


class NoModelError(_RetryLaterError): ...


class NoSpaceError(_RetryLaterError): ...


class UnavailableError(_RetryLaterError): ...


# exception -> (status, code, whether the same request may succeed later)
STATUS: dict[type[ServiceError], tuple[int, ErrorCode, bool]] = {
    BadRequestError: (400, "invalid_json", False),
    InvalidFormError: (400, "invalid_form", False),
    InvalidRequestError: (422, "invalid_request", False),
    BodyTooLargeError: (413, "invalid_request", False),
    AmbiguousLengthError: (400, "invalid_request", False),
    BodyTooSlowError: (408, "timeout", False),
    JobNotFoundError: (404, "not_found", False),
    JobUnreadableError: (410, "record_unreadable", False),
    FileMissingError: (404, "not_found", False),
    WebhookNotFoundError: (404, "not_found", False),
    ModelMissingError: (404, "model_not_found", False),
    ForbiddenError: (403, "forbidden", False),
    UnauthenticatedError: (401, "unauthenticated", False),
    ScopeMissingError: (403, "scope_missing", False),
    ConflictError: (409, "conflict", True),
    IdempotencyMismatchError: (422, "idempotency_mismatch", False),
    NotReadyError: (409, "not_ready", True),
    ResultNeverError: (409, "not_ready", False),
    JobFailedError: (500, "engine_failed", False),
    JobCanceledError: (409, "job_canceled", False),
    ResultExpiredError: (410, "result_expired", False),
    ResultDamagedError: (410, "result_damaged", False),
    RangeNotSatisfiableError: (416, "range_not_satisfiable", False),
    QueueFullError: (503, "queue_full", True),
    RateLimitedError: (429, "rate_limited", True),
    QuotaExceededError: (429, "quota_exceeded", True),
    NoModelError: (503, "no_model", True),
    NoSpaceError: (503, "disk_full", True),
    UnavailableError: (503, "service_unavailable", True),
}

# The framework's own refusals, by status.
HTTP_CODES: dict[int, ErrorCode] = {
    400: "invalid_json",
    401: "unauthenticated",
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
