"""What RQ's records may hold, and what a worker takes from them."""

import zlib

import pytest
from redis import Redis
from rq import Queue
from rq.exceptions import NoSuchJobError

from api_schemas.wire import RUN_JOB
from tests.poison import NO_TEXT, change_type
from tests.worker.bench import Bench
from worker.queued_job import QueuedJob


def fetch(redis: Redis, job_id: str) -> QueuedJob:
    return QueuedJob.fetch(job_id, connection=redis, serializer="json")


def test_a_job_of_the_service_is_taken_as_it_is(bench: Bench) -> None:
    job_id = bench.submit()
    job = fetch(bench.redis, job_id)
    assert (job.id, job.func_name, job.retries_left) == (job_id, RUN_JOB, 10)


def test_one_that_cannot_be_read_is_none_whichever_field_it_is(bench: Bench) -> None:
    job_id = bench.submit()
    key = f"rq:job:{job_id}"
    whole = bench.redis.hgetall(key)
    refused = set()
    for field in whole:
        bench.redis.hset(key, field, NO_TEXT)
        try:
            fetch(bench.redis, job_id)
        except NoSuchJobError:
            refused.add(field)
        bench.redis.hset(key, mapping=whole)
    assert {b"data", b"created_at", b"status", b"timeout"} <= refused
    change_type(bench.redis, key.encode())
    with pytest.raises(NoSuchJobError):
        fetch(bench.redis, job_id)


@pytest.mark.parametrize(
    "call", ['["os.getcwd", null, [], {}]', f'["{RUN_JOB}", null, ["other"], {{}}]', "[]", "7"]
)
def test_no_other_function_is_called(bench: Bench, call: str) -> None:
    """Who can write to Redis must not run code on the worker."""
    job_id = bench.submit()
    bench.redis.hset(f"rq:job:{job_id}", "data", zlib.compress(call.encode()))
    with pytest.raises(NoSuchJobError):
        fetch(bench.redis, job_id)
    assert Queue("chorale:toy", connection=bench.redis, job_class=QueuedJob, serializer="json").jobs == []
