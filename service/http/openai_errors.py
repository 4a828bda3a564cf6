"""Failures as OpenAI's clients read them, on the routes that are OpenAI's."""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.types import Scope

from api_schemas.errors import FieldError
from api_schemas.refused_values import REQUIRED, UNKNOWN_FIELD

_PATHS: Final = ("/v1/images/", "/v1/models/")
_LIST: Final = "/v1/models"  # ours too, so its failures are OpenAI's for OpenAI's clients alone
CLIENT: Final = "X-Stainless-Lang"
_INVALID, _UNPROCESSABLE = 400, 422
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES: Final = {
    "unauthenticated": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "quota_exceeded": "insufficient_quota",
}
_NO_PARAMETERS: Final = ("calls", "store_bytes")
_LONGEST_RETRY_S: Final = 60  # its clients obey no longer Retry-After, and would ask again within seconds
_FIRST_OF_SERVER: Final = 500
RETRY: Final = "X-Should-Retry"
ErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]


class OpenAiError(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(frozen=True)

    message: str
    type: ErrorType
    param: str | None
    code: str | None


class OpenAiFailure(BaseModel):
    """The body of every failure."""

    model_config = ConfigDict(frozen=True)

    error: OpenAiError


def is_openai(scope: Scope) -> bool:
    """Whether this request is for a route of OpenAI's."""
    if scope["type"] != "http":
        return False
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return path.startswith(_PATHS) or (path == _LIST and CLIENT in Headers(scope=scope))


def lower_status(status: int) -> int:
    """Its clients know refused values by 400 alone."""
    return _INVALID if status == _UNPROCESSABLE else status


def tells_to_retry(retryable: bool, headers: Mapping[str, str]) -> bool:
    """Whether its clients are to ask again by themselves: only if that helps within a minute."""
    wait = headers.get("Retry-After", "")
    return retryable and wait.isdecimal() and int(wait) <= _LONGEST_RETRY_S


def describe_failure(status: int, code: str, detail: str, errors: list[FieldError]) -> OpenAiFailure:
    """One of our own failures in its words.

    Args:
        status: ours; `code`, `errors` likewise. The first of the fields is `param`, the message names all;
            of a limit, what of the request it is about, if anything.
    """
    kind = "server_error" if status >= _FIRST_OF_SERVER else _TYPES.get(status, "invalid_request_error")
    param = errors[0].field if errors and errors[0].field not in _NO_PARAMETERS else None
    code = _CODES.get(code) or (_name_code(errors[0]) if errors else code)
    error = {"message": detail, "type": kind, "param": param, "code": code}
    return OpenAiFailure.model_validate({"error": error})


def _name_code(error: FieldError) -> str:
    if error.allowed.startswith(UNKNOWN_FIELD):
        return "unknown_parameter"
    return "missing_required_parameter" if error.allowed.startswith(REQUIRED) else "invalid_value"
