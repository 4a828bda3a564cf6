"""Keys with a limit of each kind, and what their clients ask."""

from collections.abc import Callable

import httpx

from api_schemas.answers import Usage
from api_schemas.errors import Problem
from api_schemas.events import Result
from tests.service.callers import make_key
from tests.story import Story

KEYS = {
    each.id: each
    for each in (
        make_key("a" * 12, calls_per_minute=3),
        make_key("b" * 12, queued_jobs=2, concurrent_jobs=1),
        make_key("c" * 12, megapixel_steps_per_day=30),
        make_key("d" * 12, store_bytes=1000),
        make_key("e" * 12),
        make_key("0" * 11 + "1", queued_jobs=3),
        make_key("0" * 11 + "2", queued_jobs=15),
        make_key("f" * 12, "admin", "read", "create"),
    )
}


RATED, QUEUED, WORKED, STORED, FREE, DRAINED, BURSTING, ADMIN = KEYS


Call = Callable[[str], httpx.Client]


def post(client: httpx.Client, idempotency_key: str = "", **choices: object) -> httpx.Response:
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    return client.post("/v1/jobs", json={"prompt": "lava", **choices}, headers=headers)


def use(client: httpx.Client, key_id: str | None = None) -> Usage:
    answer = client.get("/v1/usage", params={"key_id": key_id} if key_id else {})
    assert answer.status_code == 200, answer.text
    return Usage.model_validate_json(answer.content)


def require_refusal(answer: httpx.Response, limit: str, code: str = "quota_exceeded") -> int | None:
    """A refusal names the limit, what is used and what is allowed; its Retry-After, if it has one."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (429, "application/problem+json")
    problem = Problem.model_validate_json(answer.content)
    (error,) = problem.errors
    assert (problem.code, problem.retryable, error.field) == (code, True, limit)
    assert float(error.value) >= 0
    assert error.allowed.startswith("at most ")
    wait = answer.headers.get("Retry-After")
    return None if wait is None else int(wait)


def finish(story: Story, job_id: str, stored_bytes: int) -> None:
    story.start(job_id)
    key = f"jobs/{job_id}/one"
    story.succeed(
        job_id,
        Result(
            image_key=f"{key}/image.png", pyramid_key=key, media_type="image/png", width_px=1024, height_px=1024,
            size_bytes=1, stored_bytes=stored_bytes, sha256="0" * 64, engine_s=1.0,
        ),
    )  # fmt: skip
