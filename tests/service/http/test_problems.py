"""What several tasks of one request met is answered by the same table as what one met."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from obstore.exceptions import BaseError as StoreError
from pydantic import BaseModel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_schemas.advanced import StageSettings
from api_schemas.derived import RerollRequest
from api_schemas.events import Result
from api_schemas.generation import GenerationRequest
from api_schemas.regions import RectangleShape
from api_schemas.source import Offset, SourceMask
from service.errors import JobNotFoundError
from service.http import problems
from tests.service.routes.test_images import done

__all__ = ["done"]  # a fixture
REROLL = f"/v1/jobs/{'1' * 28}/reroll"
LOST = RedisConnectionError("No connection available.")


@pytest.mark.parametrize(
    ("errors", "status", "code"),
    [
        ([LOST], 503, "service_unavailable"),
        ([RedisTimeoutError("late"), StoreError("away"), LOST], 503, "service_unavailable"),
        ([JobNotFoundError("1")], 404, "not_found"),
        ([ExceptionGroup("inner", [LOST, LOST])], 503, "service_unavailable"),
        ([LOST, LookupError("a fault of ours")], 500, "internal_error"),
        ([ExceptionGroup("inner", [LookupError("a fault of ours")])], 500, "internal_error"),
    ],
)
def test_a_group_of_errors_is_answered_by_the_first_unless_one_is_unknown(
    errors: list[Exception], status: int, code: str
) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def fail() -> None:
        raise ExceptionGroup("tasks", errors)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert ("Retry-After" in answer.headers) == (status == 503)


UNKNOWN: list[tuple[str, object, str, type[BaseModel]]] = [
    ("/v1/jobs", {"x": 1}, "x", GenerationRequest),
    ("/v1/jobs", {"advanced": {"stages": [{"x": 1}]}}, "advanced.stages.0.x", StageSettings),
    ("/v1/jobs", {"source": {"offset": {"x": 1}}}, "source.offset.x", Offset),
    ("/v1/jobs", {"mask": {"x": 1}}, "mask.x", SourceMask),
    (REROLL, {"x": 1}, "x", RerollRequest),
    (REROLL, {"region": {"left_px": "a"}}, "region.left_px", SourceMask),
    (REROLL, {"region": {"rectangle": {"x": 1}}}, "region.rectangle.x", RectangleShape),
]


def test_a_field_that_does_not_exist_is_answered_with_those_that_do(api: httpx.Client, done: Result) -> None:
    """Of the very object that it stands in, whatever the route takes."""
    for path, body, field, model in UNKNOWN:
        errors = api.post(path, json=body).json()["errors"]
        said = {error["field"]: error["allowed"] for error in errors}
        assert said[field] == "no such field; known are " + ", ".join(model.model_fields)


WRONG: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("GET", "/v1/jobs", {"params": {"limit": 101}}, "limit", "a whole number from 1 to 100"),
    ("GET", "/v1/jobs", {"params": {"limit": "many"}}, "limit", "a whole number from 1 to 100"),
    ("HEAD", "/v1/jobs", {"params": {"limit": "many"}}, "", ""),
    ("GET", "/v1/jobs", {"params": {"status": "late"}}, "status", "queued, processing, succeeded, failed, canceled or expired"),
    ("GET", "/v1/jobs", {"params": {"cursor": "x" * 201}}, "cursor", "text of at most 200 characters"),
    ("GET", f"/v1/jobs/{'1' * 28}/tiles/x/0_0", {}, "level", "a whole number from 0 to 1000000"),
    ("POST", "/v1/jobs", {"json": {}, "headers": {"Idempotency-Key": "x" * 300}}, "idempotency-key", "text of 1 to 255 characters"),
    ("POST", "/v1/jobs", {"json": []}, "body", "an object with the fields prompt, negative_prompt, "),
    ("POST", REROLL, {"json": 5}, "body", "an object with the fields "),
    ("PUT", "/v1/webhook", {"json": {}}, "url", "required, text of at most 2048 characters"),
    ("PUT", "/v1/webhook", {"json": {"url": 5}}, "url", "text of at most 2048 characters"),
]  # fmt: skip


def test_what_is_wrong_is_told_wherever_it_stands(api: httpx.Client, done: Result) -> None:
    for method, path, sent, field, allowed in WRONG:
        answer = api.request(method, path, **sent)
        assert answer.status_code == 422, answer.text
        if method != "HEAD":
            error = answer.json()["errors"][0]
            assert error["field"].lower() == field
            assert error["allowed"].startswith(allowed), error
