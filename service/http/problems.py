"""Turns every failure into application/problem+json (RFC 9457); where OpenAI's clients call, into their form."""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, cast, get_args

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from obstore.exceptions import BaseError as StoreError
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Scope

from api_schemas.errors import ErrorCode, FieldError, Problem
from api_schemas.keys import hide_secrets
from api_schemas.refused_values import Failure, Form, form_of
from service.errors import (
    HTTP_CODES,
    INTERNAL_ERROR,
    STATUS,
    BadRequestError,
    InvalidRequestError,
    ServiceError,
    UnavailableError,
)
from service.http.openai_errors import (
    RETRY,
    OpenAiFailure,
    describe_failure,
    is_openai,
    lower_status,
    tells_to_retry,
)
from service.outages import explain_queue, explain_store, is_disk_full

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "X-Request-ID"
_RETRY_AFTER_S = 5
_CLIENT_LEFT = 499
_INTERNAL = "an error of the service; the log holds the request_id"

log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Answer all exceptions, the framework's own too, with problem bodies."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(ExceptionGroup, _answer_group)
    app.add_exception_handler(Exception, _answer_internal_error)


def answer(scope: Scope, error: ServiceError) -> Response:
    """The problem body of one of our own errors."""
    status, code, retryable = STATUS[type(error)]
    return _respond(scope, status, code, error.detail, retryable, error.errors, error.headers)


def answer_unavailable(scope: Scope, error: Exception) -> Response:
    """The problem body of what the queue server or the object store has answered, if anything."""
    log.warning("%s: %s", _describe(scope), str(error).partition("\n")[0])
    outage = explain_store(error) if isinstance(error, StoreError) else explain_queue(error)
    return answer(scope, UnavailableError(outage.message, retry_after_s=_RETRY_AFTER_S))


def describe_for_openai(error: Exception) -> OpenAiFailure:
    """In OpenAI's words, where an answer was begun and can have no other status."""
    if isinstance(error, StoreError | RedisError):
        outage = explain_store(error) if isinstance(error, StoreError) else explain_queue(error)
        error = UnavailableError(outage.message, retry_after_s=_RETRY_AFTER_S)
    if isinstance(error, ServiceError):
        status, code, _ = STATUS[type(error)]
        return describe_failure(status, code, _printable(error.detail), error.errors)
    log.error("request %s failed: %r", correlation_id.get(), error)
    status, code, _ = INTERNAL_ERROR
    return describe_failure(status, code, _INTERNAL, [])


async def _answer_service_error(request: Request, error: Exception) -> Response:
    return answer(request.scope, cast(ServiceError, error))


async def _answer_unavailable(request: Request, error: Exception) -> Response:
    return answer_unavailable(request.scope, error)


async def _answer_full_disk(request: Request, error: Exception) -> Response:
    """Large bodies are written to files while they arrive; any other error of the system is one of ours."""
    if not is_disk_full(cast(OSError, error)):
        raise error
    log.error("%s: %s", _describe(request.scope), error)
    return answer(
        request.scope, UnavailableError("the disk of the service is full", retry_after_s=_RETRY_AFTER_S)
    )


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    """For the metrics: the client has left before its request was whole (the status is nginx's)."""
    return Response(status_code=_CLIENT_LEFT)


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    failures = cast(Sequence[Failure], cast(RequestValidationError, error).errors())
    undecodable = [each for each in failures if each["type"] == "json_invalid"]
    if undecodable:
        return answer(request.scope, BadRequestError(_describe_json_error(undecodable[0])))
    return answer(request.scope, InvalidRequestError([_field_error(each, request) for each in failures]))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    failure = cast(HTTPException, error)
    code = HTTP_CODES.get(failure.status_code, INTERNAL_ERROR[1])
    detail = f"{_describe(request.scope)}: {failure.detail}"
    headers = dict(failure.headers or {})
    if "Allow" in headers:
        headers["Allow"] = _name_methods(_allowed_methods(request) or headers["Allow"].split(", "))
    retryable = failure.status_code == STATUS[UnavailableError][0]
    return _respond(request.scope, failure.status_code, code, detail, retryable, [], headers)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ServiceError: _answer_service_error,
    RequestValidationError: _answer_validation_error,
    HTTPException: _answer_http_error,
    RedisError: _answer_unavailable,
    StoreError: _answer_unavailable,
    OSError: _answer_full_disk,
    ClientDisconnect: _answer_nobody,
}


async def _answer_group(request: Request, error: Exception) -> Response:
    """What several tasks of a request met, by the first of it, unless there is a fault of ours among it."""
    group = cast(ExceptionGroup[Exception], error)
    if group.split(tuple(_HANDLERS))[1] is not None:
        raise group
    first = group.exceptions[0]
    if isinstance(first, ExceptionGroup):
        return await _answer_group(request, cast(Exception, first))
    handler = next(each for kind, each in _HANDLERS.items() if isinstance(first, kind))
    return await handler(request, first)


async def _answer_internal_error(request: Request, error: Exception) -> Response:
    # The server logs the traceback itself.
    log.error("request %s failed: %r", correlation_id.get(), error)
    status, code, retryable = INTERNAL_ERROR
    # What went wrong inside stays in the log: it may hold paths or addresses.
    detail = _INTERNAL
    # Made outside the middleware that gives all other answers their id.
    headers = {REQUEST_ID: correlation_id.get() or "-"}
    return _respond(request.scope, status, code, detail, retryable, [], headers)


def _respond(
    scope: Scope,
    status: int,
    code: ErrorCode,
    detail: str,
    retryable: bool,
    errors: list[FieldError],
    headers: dict[str, str],
) -> Response:
    request_id, detail = correlation_id.get() or "-", _printable(detail)
    if is_openai(scope):
        failure = describe_failure(status, code, detail, errors)
        retry = str(tells_to_retry(retryable, headers)).lower()
        headers = {"Cache-Control": "no-store", RETRY: retry} | headers
        return Response(
            failure.model_dump_json(), lower_status(status), headers, media_type="application/json"
        )
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        errors=errors,
        request_id=request_id,
        retryable=retryable,
    )
    headers = headers | {"Cache-Control": "no-store"}
    if scope["type"] == "websocket":  # the middleware sees no refused handshake
        headers[REQUEST_ID] = request_id
    return Response(problem.model_dump_json(), status, headers, media_type=MEDIA_TYPE)


def _allowed_methods(request: Request) -> list[str]:
    """All methods of this path: the router names only those of the first route that fits."""
    paths = cast(dict[str, dict[str, object]], request.app.openapi()["paths"])
    here = request.url.path.removeprefix(request.scope.get("root_path", ""))
    fitting = [methods for path, methods in paths.items() if compile_path(path)[0].match(here)]
    return sorted({name.upper() for methods in fitting for name in methods})


def _name_methods(described: Sequence[str]) -> str:
    """Every route that answers GET answers HEAD, which goes without saying in the description."""
    return ", ".join(sorted({*described, *(["HEAD"] if "GET" in described else [])}))


def _describe(scope: Scope) -> str:
    """Method and path; this may be a WebSocket's handshake."""
    return f"{scope.get('method', 'WS')} {scope['path']}"


def _describe_json_error(failure: Failure) -> str:
    context = cast(dict[str, object], failure.get("ctx") or {})
    location = cast(Sequence[object], failure["loc"])
    return f"the body is not JSON: {context.get('error', failure['msg'])} at character {location[-1]}"


def _field_error(failure: Failure, request: Request) -> FieldError:
    place, *location = cast(Sequence[str | int], failure["loc"])
    if isinstance(failure.get("input"), bytes):  # as FastAPI leaves a body that is not said to be JSON
        kind = request.headers.get("content-type", "none")
        return FieldError(field="Content-Type", value=_printable(kind), allowed="application/json")
    form = _find_body(request) if place == "body" else _find_parameters(request, str(place))
    error = form.explain(failure, location)
    return error if location else error.model_copy(update={"field": place})


def _find_body(request: Request) -> Form:
    """What this route takes."""
    models = _find_models(request.scope["route"].body_field.field_info.annotation)
    return form_of(next(models))


def _find_models(annotation: object) -> Iterator[type[BaseModel]]:
    """Those that a field of this type may hold, in options too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _find_models(part)


def _find_parameters(request: Request, place: str) -> Form:
    """What this route takes in its path, query or headers."""
    document = cast(dict[str, dict[str, dict[str, Any]]], request.app.openapi())
    method = "get" if request.method == "HEAD" else request.method.lower()
    parameters = document["paths"][request.scope["route"].path_format][method]["parameters"]
    fields = {each["name"]: each["schema"] for each in parameters if each["in"] == place}
    return Form({"properties": fields}, document)


def _printable(text: str) -> str:
    return hide_secrets(text.encode("utf-8", "backslashreplace").decode())
