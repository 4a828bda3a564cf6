"""Paths, errors and messages of the API, shared by both clients."""

import os
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from websockets.exceptions import InvalidStatus, ProxyError

from api_schemas import preview_frames
from api_schemas.answers import JobView, Readiness, Snapshot
from api_schemas.errors import Problem
from api_schemas.events import TERMINAL_TYPES, DurableEvent, Result, TilePreviewed
from api_schemas.job import TERMINAL
from chorale.errors import (
    AddressError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    JobEndedError,
    JobRunningError,
    KeyFormatError,
    NotFoundError,
    ProblemError,
    UnauthenticatedError,
    UnavailableError,
    UnexpectedAnswerError,
)

DEFAULT_URL = "http://127.0.0.1:8000"
Update = DurableEvent | Snapshot
Body = TypeVar("Body", bound=BaseModel)
_update = TypeAdapter[Update](Annotated[Update, Field(discriminator="type")])
_ERRORS: dict[int, type[ProblemError]] = {
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: NotFoundError,
    422: InvalidRequestError,
    429: UnavailableError,
    503: UnavailableError,
}


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview of one rectangle of the canvas; `image` is a JPEG."""

    event: TilePreviewed
    image: bytes


def server_url(url: str) -> str:
    """An address without the slash at its end.

    Raises:
        AddressError: there can be no server.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise AddressError(url) from error
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) > 65_535:
        raise AddressError(url)
    return url.rstrip("/")


def key_headers(api_key: str | None) -> dict[str, str]:
    """The headers that carry an API key, by default that of CHORALE_API_KEY; none without.

    Raises:
        KeyFormatError: it could be no key.
    """
    key = (os.environ.get("CHORALE_API_KEY", "") if api_key is None else api_key).strip()
    if not re.fullmatch("[!-~]*", key):
        raise KeyFormatError
    return {"Authorization": f"Bearer {key}"} if key else {}


def job_path(job_id: str, *parts: str) -> str:
    """The path of a job, or of something that belongs to it.

    Raises:
        NotFoundError: there can be no such job; a server may take its id for several parts of the path, or for none.
    """
    if not job_id.strip(".") or "/" in job_id:
        detail = f"no job {job_id[:64]!r}"
        problem = Problem(title="Not found", status=404, detail=detail, code="not_found", request_id="-")
        raise NotFoundError(problem)
    return "/".join(("/v1/jobs", quote(job_id, safe=""), *parts))


def after_parameters(after: str) -> dict[str, str]:
    """Query parameters that resume an event stream."""
    return {"after": after} if after else {}


def finished(job: JobView) -> JobView:
    """Check that a job has or will have a picture.

    Raises:
        JobEndedError: it ended without one.
    """
    if job.status != "succeeded":
        raise JobEndedError(job)
    return job


def result_of(job: JobView) -> Result:
    """The picture of a job.

    Raises:
        JobEndedError: it ended without one.
        JobRunningError: it has none yet.
    """
    if job.result is not None:
        return job.result
    raise JobEndedError(job) if job.status in TERMINAL else JobRunningError(job)


def live_url(url: str, job_id: str, after: str) -> str:
    """The WebSocket address of a job."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    query = f"after={quote(after)}" if after else ""
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + job_path(job_id, "ws"), query, ""))


def is_refused(error: Exception) -> bool:
    """Whether WebSockets are refused for good, by a proxy as a rule; 5xx is said by one whose server restarts."""
    refused = isinstance(error, InvalidStatus) and error.response.status_code < 500
    return refused or isinstance(error, ProxyError)


def check(response: httpx.Response) -> httpx.Response:
    """Check the status; the body of an error response must have been read.

    Raises:
        ProblemError: the server refused.
        UnexpectedAnswerError: this is no Chorale server.
    """
    if response.is_success:
        return response
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError as error:
        where = f"{response.request.method} {response.request.url}"
        raise UnexpectedAnswerError(f"{where} answered {response.status_code} without a reason") from error
    raise _ERRORS.get(response.status_code, ProblemError)(problem, _retry_after(response))


def read(response: httpx.Response, body: type[Body]) -> Body:
    """The body of a successful response.

    Raises:
        ProblemError: the server refused.
        UnexpectedAnswerError: this is no Chorale server, or one of another version.
    """
    try:
        return body.model_validate_json(check(response).content)
    except ValidationError as error:
        message = f"{response.request.url} does not answer with a {body.__name__}: is this a Chorale server?"
        raise UnexpectedAnswerError(message) from error


def read_readiness(response: httpx.Response) -> Readiness:
    """A server that is not ready answers 503 with the same body, which names what is missing."""
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        return Readiness.model_validate_json(response.content)
    return read(response, Readiness)


def read_update(text: str) -> Update:
    """One text message of a job's WebSocket.

    Raises:
        UnexpectedAnswerError: the message is of an unknown kind.
    """
    try:
        return _update.validate_json(text)
    except ValidationError as error:
        raise UnexpectedAnswerError(f"unknown message: {text[:200]!r}") from error


def read_previews(message: bytes) -> list[Preview]:
    """One binary message of a job's WebSocket."""
    try:
        return [
            Preview(*preview_frames.unpack_preview(frame)) for frame in preview_frames.unpack_batch(message)
        ]
    except ValueError as error:
        raise UnexpectedAnswerError(f"unknown binary message: {error}") from error


def is_last(update: Update) -> bool:
    """Whether nothing can follow."""
    return update.type in TERMINAL_TYPES


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
