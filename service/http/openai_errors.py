"""Failures as OpenAI's clients read them, on the routes that are OpenAI's."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict
from starlette.types import Scope

from api_schemas.errors import FieldError

UNKNOWN_FIELD: Final = "no such field"
_MISSING: Final = "Field required"
_PATHS: Final = ("/v1/images/", "/v1/models/")
_INVALID, _UNPROCESSABLE = 400, 422
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES: Final = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
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
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return scope["type"] == "http" and path.startswith(_PATHS)


def lower_status(status: int) -> int:
    """Its clients know refused values by 400 alone."""
    return _INVALID if status == _UNPROCESSABLE else status


def describe_failure(status: int, code: str, detail: str, errors: list[FieldError]) -> OpenAiFailure:
    """One of our own failures in its words.

    Args:
        status: ours; `code`, `errors` likewise. The first of the fields is `param`, the message names all.
    """
    kind = "server_error" if status >= _FIRST_OF_SERVER else _TYPES.get(status, "invalid_request_error")
    code = _name_code(errors[0]) if errors else _CODES.get(status, code)
    error = {"message": detail, "type": kind, "param": errors[0].field if errors else None, "code": code}
    return OpenAiFailure.model_validate({"error": error})


def _name_code(error: FieldError) -> str:
    if error.allowed.startswith(UNKNOWN_FIELD):
        return "unknown_parameter"
    return "missing_required_parameter" if error.allowed == _MISSING else "invalid_value"
