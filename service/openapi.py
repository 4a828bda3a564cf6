"""What routes declare beyond their success: every failure, as the table in errors.py has it."""

from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api_schemas.errors import Problem
from service.errors import INTERNAL_ERROR, STATUS, BodyTooLargeError, ServiceError, UnavailableError
from service.problems import MEDIA_TYPE

Responses = dict[int | str, dict[str, object]]
_REFERENCE = {"$ref": "#/components/schemas/Problem"}


def problems(*errors: type[ServiceError]) -> Responses:
    """Declarations for these errors and for those that any route can meet."""
    codes: dict[int, list[str]] = {INTERNAL_ERROR[0]: [INTERNAL_ERROR[1]]}
    for error in (*errors, BodyTooLargeError, UnavailableError):
        status, code, _ = STATUS[error]
        codes.setdefault(status, []).append(code)
    return {status: _declare(sorted(set(names))) for status, names in sorted(codes.items())}


def install(app: FastAPI) -> None:
    """Complete the generated description with the schema of problem bodies."""

    def describe() -> dict[str, object]:
        if not app.openapi_schema:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title, version=app.version, description=app.description, routes=app.routes
                )
            )
        return app.openapi_schema

    app.openapi = describe


def _declare(codes: list[str]) -> dict[str, object]:
    return {"description": " or ".join(codes), "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}


def _complete(schema: dict[str, object]) -> dict[str, object]:
    components = cast(dict[str, dict[str, object]], schema.setdefault("components", {}))
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schemas = components.setdefault("schemas", {})
    schemas.update(cast(dict[str, object], problem.pop("$defs", {})))
    schemas["Problem"] = problem
    return schema
