"""After a crash of either, records and queue agree again, and a healthy queue is left alone."""

import time
from collections.abc import Callable

import httpx
import pytest
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job as QueuedJob

from api_schemas.wire import RUN_JOB, job_key, queue_name
from service.settings import ServiceSettings
from tests.story import CARD, Story


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(queue_name(CARD.name), connection=redis, serializer="json")


def eventually(true: Callable[[], bool], timeout_s: float = 30) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


def post(api: httpx.Client) -> str:
    return api.post("/v1/jobs", json={"prompt": "lava"}).json()["id"]


def test_a_recorded_job_that_the_queue_lost_is_queued_again(
    api: httpx.Client, story: Story, queue: Queue
) -> None:
    waiting, running = post(api), post(api)
    story.start(running)
    for job_id in (waiting, running):
        QueuedJob.fetch(job_id, connection=queue.connection, serializer="json").delete()
    assert eventually(lambda: sorted(queue.get_job_ids()) == sorted([waiting, running]))
    revived = queue.fetch_job(waiting)
    assert revived is not None
    assert (revived.func_name, revived.retries_left) == (RUN_JOB, ServiceSettings().job_retries)


def test_a_job_that_is_known_but_in_no_list_is_queued_again(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    job_id = post(api)
    redis.delete(queue.key)  # popped by a worker that died in that moment, and its intermediate list lost
    assert eventually(lambda: queue.get_job_ids() == [job_id])


def test_a_job_in_the_queue_of_earlier_versions_moves_to_its_models(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    job_id = post(api)
    QueuedJob.fetch(job_id, connection=redis, serializer="json").delete()
    Queue("chorale", connection=redis, serializer="json").enqueue(RUN_JOB, job_id, job_id=job_id)
    assert eventually(lambda: queue.get_job_ids() == [job_id])
    assert len(Queue("chorale", connection=redis, serializer="json")) == 0


def test_an_ended_job_is_not_queued_again(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    job_id = post(api)
    story.start(job_id)
    story.fail(job_id)
    QueuedJob.fetch(job_id, connection=redis, serializer="json").delete()
    assert eventually(lambda: redis.smembers("chorale:active") == set())
    assert queue.get_job_ids() == []


def test_a_running_job_is_left_alone(api: httpx.Client, story: Story, queue: Queue, redis: Redis) -> None:
    job_id = post(api)
    job = QueuedJob.fetch(job_id, connection=redis, serializer="json")
    queue.remove(job)
    job.set_status("started")
    with redis.pipeline() as pipeline:
        Execution.create(job, ttl=600, pipeline=pipeline)
        pipeline.execute()
    story.start(job_id)
    time.sleep(1)  # five passes
    assert queue.get_job_ids() == []
    assert QueuedJob.fetch(job_id, connection=redis, serializer="json").is_started


def test_a_queued_job_without_a_record_is_dropped(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    kept, lost = post(api), post(api)
    redis.delete(job_key(lost))
    assert eventually(lambda: queue.get_job_ids() == [kept])
