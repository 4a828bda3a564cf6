"""Error responses in OpenAPI, taken from the table in errors.py."""

from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api_schemas.errors import Problem
from api_schemas.generation import GenerationRequest
from api_schemas.webhook import ALL_EVENTS
from service.errors import (
    INTERNAL_ERROR,
    STATUS,
    BodyTooLargeError,
    BodyTooSlowError,
    ForbiddenError,
    ServiceError,
    UnavailableError,
)
from service.http.openai_errors import OpenAiFailure, lower_status
from service.http.problems import MEDIA_TYPE
from service.images.formats import name_formats, readable_formats
from service.jobs.submission import PICTURE_PARTS, REQUEST_PART
from service.openai_api.parameters import ChoraleOptions, EditParameters

_WEBHOOK: dict[str, object] = {
    "summary": "A job has ended, or has begun",
    "description": "Sent by the service, signed as Standard Webhooks has it: receivers verify the headers `webhook-id`,"
    " `webhook-timestamp` and `webhook-signature` with one of its libraries. The job is as the event has left it,"
    " without `urls.download`. Any status from 200 to 299 takes it; 410 ends all further ones.",
    "tags": ["webhooks"],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "type": {"enum": list(ALL_EVENTS)},
                        "timestamp": {"type": "string", "format": "date-time"},
                        "data": {"$ref": "#/components/schemas/JobView"},
                    },
                    "required": ["type", "timestamp", "data"],
                }
            }
        },
    },
    "responses": {"2XX": {"description": "It was taken."}},
}
Responses = dict[int | str, dict[str, object]]
_REFERENCE = {"$ref": "#/components/schemas/Problem"}
_REQUEST_REFERENCE = {"$ref": "#/components/schemas/GenerationRequest"}
_PICTURE = {
    "type": "string",
    "format": "binary",
    "description": f"A {name_formats()} picture; the first, where there are several. Colours are converted to sRGB.",
}
_MASK = {
    "type": "string",
    "format": "binary",
    "description": f"The mask of each region that names it, a {name_formats()} picture: white where the region is.",
}
_PICTURE_TYPES = ", ".join(each.media_type for each in readable_formats())


def _describe_parts() -> dict[str, object]:
    return {part: _MASK if part.startswith("region_mask") else _PICTURE for part in PICTURE_PARTS}


def _describe_edit() -> dict[str, object]:
    """The fields as they are in a form, where an object's are `chorale[seed]`."""
    schema = EditParameters.model_json_schema()
    fields = cast(dict[str, object], schema["properties"])
    options = cast(dict[str, object], ChoraleOptions.model_json_schema()["properties"])
    del fields["chorale"]
    fields |= {f"chorale[{name}]": option for name, option in options.items()}
    fields |= {
        "image": _PICTURE | {"description": "The picture that is edited, if it is the only one."},
        "image[]": {
            "type": "array",
            "items": _PICTURE,
            "maxItems": 2,
            "description": "The picture that is edited, and one for its style.",
        },
        "mask": _PICTURE | {"description": "Is painted where it is transparent; needs an alpha channel."},
    }
    return {"type": "object", "properties": fields, "required": ["prompt"], "additionalProperties": False}


# A route that reads its body itself declares it here.
SUBMISSION_BODY: dict[str, object] = {
    "required": True,
    "content": {
        "application/json": {"schema": _REQUEST_REFERENCE},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {REQUEST_PART: _REQUEST_REFERENCE, **_describe_parts()},
                "required": [REQUEST_PART],
                "additionalProperties": False,
            },
            "encoding": {
                REQUEST_PART: {"contentType": "application/json"},
                **{part: {"contentType": _PICTURE_TYPES} for part in PICTURE_PARTS},
            },
        },
    },
}


EDIT_BODY: dict[str, object] = {
    "required": True,
    "content": {"multipart/form-data": {"schema": _describe_edit()}},
}


def problems(*errors: type[ServiceError]) -> Responses:
    """Responses for these errors and for those that any route can give."""
    codes: dict[int, list[str]] = {INTERNAL_ERROR[0]: [INTERNAL_ERROR[1]]}
    for error in (*errors, BodyTooLargeError, BodyTooSlowError, ForbiddenError, UnavailableError):
        status, code, _ = STATUS[error]
        codes.setdefault(status, []).append(code)
    return {status: _declare(sorted(set(names))) for status, names in sorted(codes.items())}


def openai_failures(*errors: type[ServiceError]) -> Responses:
    """The same where OpenAI's clients call."""
    codes: dict[int, list[str]] = {}
    for status, response in problems(*errors).items():
        codes.setdefault(lower_status(int(status)), []).append(str(response["description"]))
    return {
        status: {"model": OpenAiFailure, "description": " or ".join(names)}
        for status, names in sorted(codes.items())
    }


def install(app: FastAPI) -> None:
    """Complete the generated description with the schemas of problems and of what is posted."""

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
    # What may be left out of a request is always there in an answer, so the parts differ.
    asked = GenerationRequest.model_json_schema(ref_template="#/components/schemas/{model}-Input")
    parts = cast(dict[str, object], asked.pop("$defs", {}))
    schemas.update({f"{name}-Input": part for name, part in parts.items()})
    schemas["GenerationRequest"] = asked
    _leave_out_framework_failures(cast(dict[str, dict[str, dict[str, object]]], schema["paths"]))
    schema["webhooks"] = {"job": {"post": _WEBHOOK}}
    return schema


def _leave_out_framework_failures(paths: dict[str, dict[str, dict[str, object]]]) -> None:
    """FastAPI adds its own form of a refused value where we declare no 422."""
    for operation in (each for methods in paths.values() for each in methods.values()):
        responses = cast(dict[str, dict[str, object]], operation["responses"])
        if responses.get("422", {}).get("description") == "Validation Error":
            del responses["422"]
