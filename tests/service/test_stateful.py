"""Calls that follow from one another, with a key where keys are needed: each answer is one that was declared."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import schemathesis
from obstore.store import LocalStore
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine.events import NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

from api_schemas.wire import JOBS_KEY
from tests.service.routes.openai_client import draw
from tests.service.tenants import RESULT, Tenants, bearer
from tests.service.test_openapi import CHECKS
from tests.story import Story

SCENARIOS = 30
PHASES = ("examples", "coverage", "fuzzing", "stateful")
# What is drawn is hardly ever a request that can be met, and from one that is refused nothing follows.
CORNER = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 128, "height_px": 128}}
BODIES: dict[str, dict[str, object]] = {
    "/v1/jobs": {"width_px": 1024, "height_px": 1024, "regions": [{"prompt": "moss", "shape": CORNER}]},
    "/v1/jobs/{job_id}/reroll": {"region": CORNER},
    "/v1/jobs/{job_id}/extend": {"right_px": 64},
    "/v1/jobs/{job_id}/variations": {"count": 2},
}


def test_no_undeclared_answer_whatever_is_done_with_what_was_answered(
    url: str, tenants: Tenants, made: str, story: Story, store_dir: Path
) -> None:
    """Which calls take what of an answer is inferred from the description."""
    config = {
        "headers": bearer(tenants.key(tenants.operator)),
        "request-timeout": 60,
        "generation": {"max-examples": SCENARIOS, "mode": "positive"},
        "phases": {name: {"enabled": name == "stateful"} for name in PHASES},
        "checks": {"enabled": False} | {check.__name__: {"enabled": True} for check in CHECKS},
    }
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=SchemathesisConfig.from_dict(config))

    @schema.hook
    def map_case(_: object, case: schemathesis.Case) -> schemathesis.Case:
        """As often as not what can be met; an id that is drawn is that of a finished job."""
        if case.operation.path in BODIES and len(repr(case.body)) % 2:
            case.body, case.media_type = BODIES[case.operation.path], "application/json"
        if len(case.path_parameters.get("job_id", made)) != len(made):
            case.path_parameters["job_id"] = made
        return case

    answers = Counter[tuple[str, int]]()
    with _working(story, store_dir):
        for event in engine.from_schema(schema).execute():
            assert not isinstance(event, NonFatalError), event.info
            if isinstance(event, ScenarioFinished):
                _require_passed(event.recorder)
                answers.update(_list_answers(event.recorder))
    assert sum(answers[f"POST {path}", 202] for path in BODIES) > 1


def _require_passed(recorder: ScenarioRecorder) -> None:
    for checks in recorder.checks.values():
        for check in checks:
            assert check.failure_info is None, check.failure_info


def _list_answers(recorder: ScenarioRecorder) -> Iterator[tuple[str, int]]:
    for case_id, interaction in recorder.interactions.items():
        if interaction.response is not None:
            yield recorder.cases[case_id].value.operation.label, interaction.response.status_code


@contextmanager
def _working(story: Story, store_dir: Path) -> Iterator[None]:
    """End all jobs soon: two of three with a picture, which is the same for all, and one without."""
    enough, picture = Event(), draw(size=(1024, 1024))
    LocalStore(store_dir).put(RESULT.image_key, picture)
    result = RESULT.model_copy(update={"size_bytes": len(picture)})

    def work() -> None:
        while not enough.wait(0.02):
            for name in story.redis.zrevrange(JOBS_KEY, 0, 20):
                if story.start_if_queued(name.decode()):
                    story.fail(name.decode()) if name[-1] % 3 == 0 else story.succeed(name.decode(), result)

    with ThreadPoolExecutor(1) as pool:
        worked = pool.submit(work)
        try:
            yield
        finally:
            enough.set()
            worked.result()
