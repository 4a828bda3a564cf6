"""What several tasks of one request met is answered by the same table as what one met."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from obstore.exceptions import BaseError as StoreError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import JobNotFoundError
from service.http import problems

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
