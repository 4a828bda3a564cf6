"""The description is complete: whatever schemathesis sends, each answer is one that was declared."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api_schemas.wire import JOBS_KEY
from tests.story import Story

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)

# What the schema of a parameter that takes any text may say.
UNLIMITED = {"type", "title", "description", "default"}


def test_no_server_error_and_no_undeclared_answer(api: httpx.Client, url: str, story: Story) -> None:
    ended = "4" * 28
    story.queue(ended)
    story.cancel(ended)
    with _canceling(story):  # what OpenAI's clients ask for they wait for
        _attack_all(url, ended)


def _attack_all(url: str, ended: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:
        _attack(operation, ended)


@contextmanager
def _canceling(story: Story) -> Iterator[None]:
    """End all jobs soon, as a user would who has enough."""
    enough, ended = Event(), set[str]()

    def cancel() -> None:
        while not enough.wait(0.02):
            for job_id in {key.decode() for key in story.redis.zrevrange(JOBS_KEY, 0, 20)} - ended:
                if story.job(job_id).status == "queued":
                    story.cancel(job_id)
                ended.add(job_id)

    with ThreadPoolExecutor(1) as pool:
        canceled = pool.submit(cancel)
        try:
            yield
        finally:
            enough.set()
            canceled.result()


def _attack(operation: schemathesis.APIOperation, job_id: str) -> None:
    @settings(
        max_examples=50,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy())
    def attack(case: schemathesis.Case) -> None:
        if "job_id" in case.path_parameters and len(case.path_parameters["job_id"]) % 2:
            case.path_parameters["job_id"] = job_id  # as often as not a job that exists
        case.call_and_validate(checks=CHECKS, timeout=60)

    try:
        attack()
    except FailureGroup as failures:
        pytest.fail(f"{operation.label}: {failures.exceptions}")


def test_every_route_declares_what_can_fail_anywhere(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert {"413", "500", "503"} <= set(operation["responses"]), (method, path)


def test_every_route_declares_that_its_body_or_a_parameter_may_be_refused(api: httpx.Client) -> None:
    """What is no JSON is 400, a value out of its limits 422, or 400 where OpenAI's clients call."""
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            declared = set(operation["responses"])
            schemas = [each["schema"] for each in operation.get("parameters", [])]
            limited = [each for each in schemas if each.get("type") != "string" or set(each) - UNLIMITED]
            assert "requestBody" not in operation or "400" in declared, (method, path)
            assert not limited or declared & {"400", "422"}, (method, path)
