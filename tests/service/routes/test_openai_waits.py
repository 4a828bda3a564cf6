"""OpenAI's Images API with its own client: what fails late, takes long, is asked for again, or given up."""

import base64
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.routes.openai_client import SOURCE, connect, end_in_failure, find_jobs, finish
from tests.service.tenants import Tenants
from tests.story import Story


@pytest.mark.parametrize(
    ("late", "end", "kind"),
    [
        (True, end_in_failure, openai.InternalServerError),
        (False, lambda story, job_id: story.cancel(job_id), openai.ConflictError),
    ],
)
def test_a_job_that_fails_is_the_clients_exception_and_is_not_made_again(
    brisk: str,
    story: Story,
    pool: ThreadPoolExecutor,
    late: bool,
    end: Callable[[Story, str], object],
    kind: type[Exception],
) -> None:
    """Late, its answer has begun with blanks: it breaks off, and the client, asking again, is told."""
    asked = pool.submit(connect(brisk, max_retries=2).images.generate, prompt="x")
    (job_id,) = find_jobs(story)
    time.sleep(0.4 if late else 0)
    end(story, job_id)
    with pytest.raises(kind) as failure:
        asked.result(timeout=30)
    assert job_id in str(failure.value)
    assert failure.value.code == ("engine_failed" if late else "job_canceled")
    assert find_jobs(story) == [job_id]


def test_who_waits_is_refused_once_the_key_is_revoked_and_the_jobs_go_on(
    tenants: Tenants, url: str, story: Story, pool: ThreadPoolExecutor
) -> None:
    client = connect(url, api_key=tenants.key(tenants.ann), max_retries=2)
    asked = pool.submit(client.images.generate, prompt="x")
    stream = client.images.generate(prompt="x", stream=True)
    jobs = find_jobs(story, 2)
    tenants.records.revoke("ann")
    with pytest.raises(openai.APIError) as ended:
        list(stream)
    assert (ended.value.code, ended.value.type) == ("invalid_api_key", "authentication_error")
    with pytest.raises(openai.AuthenticationError) as refused:
        asked.result(timeout=30)
    assert refused.value.code == "invalid_api_key"
    assert {story.job(job_id).status for job_id in jobs} == {"queued"}


def test_what_takes_long_is_kept_alive_and_whole(
    brisk: str, story: Story, store_dir: Path, pool: ThreadPoolExecutor
) -> None:
    """Also for who reads no more than three seconds without a byte; others are answered meanwhile."""
    asked = pool.submit(connect(brisk, timeout=3).images.generate, prompt="x", n=3)
    pictures = [bytes([index]) * size for index, size in enumerate((1, 1 << 20, (5 << 20) + 1))]
    jobs = find_jobs(story, 3)
    for _ in range(3):
        assert len(httpx.get(f"{brisk}/v1/jobs").json()["data"]) == 3
        time.sleep(1.2)
    for job_id, picture in reversed(list(zip(jobs, pictures, strict=True))):
        finish(story, store_dir, job_id, picture)
    answer = asked.result(timeout=30)
    assert [base64.b64decode(each.b64_json) for each in answer.data] == pictures
    assert len({story.job(job_id).request.seed for job_id in jobs}) == 3


def test_a_repeated_request_makes_no_second_picture(
    url: str, story: Story, store_dir: Path, pool: ThreadPoolExecutor
) -> None:
    """Nor does a client that leaves cancel it."""
    asked = pool.submit(connect(url, max_retries=9, timeout=0.5).images.edit, image=SOURCE, prompt="x")
    (job_id,) = find_jobs(story)
    time.sleep(1.2)  # it has asked for the second time
    finish(story, store_dir, job_id, b"picture")
    assert base64.b64decode(asked.result(timeout=30).data[0].b64_json) == b"picture"
    assert find_jobs(story) == [job_id]


def test_nobody_waits_for_a_client_that_left(
    settings: ServiceSettings, serve_with: Serve, story: Story
) -> None:
    """Though every 20 ms the queue server is asked, where a cancellation may get lost."""
    url = serve_with(settings.model_copy(update={"ping_interval_s": 0.02}))
    for index in range(8):
        body = {"prompt": "x", "stream": index % 4 == 0}
        with httpx.stream("POST", f"{url}/v1/images/generations", json=body, timeout=10) as answer:
            next(answer.iter_raw())
    deadline = time.monotonic() + 10
    while "\nchorale_live_readers 0.0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {story.job(job_id).status for job_id in find_jobs(story, 8)} == {"queued"}


def test_an_idempotency_key_is_honoured(url: str, story: Story, store_dir: Path) -> None:
    for _ in range(2):
        with suppress(openai.APITimeoutError):
            connect(url, timeout=0.3).images.generate(prompt="x", extra_headers={"Idempotency-Key": "k"})
        (job_id,) = find_jobs(story)  # until then the key would be answered 409
    assert story.job(job_id).status == "queued"
    with pytest.raises(openai.BadRequestError) as refusal:
        connect(url).images.generate(prompt="y", extra_headers={"Idempotency-Key": "k"})
    assert refusal.value.code == "idempotency_mismatch"
    finish(story, store_dir, job_id, b"picture")
    answer = connect(url).images.generate(prompt="x", extra_headers={"Idempotency-Key": "k"})
    assert base64.b64decode(answer.data[0].b64_json) == b"picture"
