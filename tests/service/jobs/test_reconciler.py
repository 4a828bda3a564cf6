"""After a crash of either, records and queue agree again, and a healthy queue is left alone."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from redis import Redis
from rq import Queue
from rq.exceptions import InvalidJobOperation, NoSuchJobError
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


def list_queued(queue: Queue) -> list[str]:
    """Ids of jobs that wait: one for the worker, then the others."""
    waiting = queue.connection.zrange(f"chorale:waiting:{queue.name}", 0, -1)
    return queue.get_job_ids() + [member.decode().rpartition(":")[2] for member in waiting]


def post(api: httpx.Client) -> str:
    return api.post("/v1/jobs", json={"prompt": "lava"}).json()["id"]


def test_a_recorded_job_that_the_queue_lost_is_queued_again(
    api: httpx.Client, story: Story, queue: Queue
) -> None:
    waiting, running = post(api), post(api)
    story.start(running)
    for job_id in (waiting, running):
        QueuedJob.fetch(job_id, connection=queue.connection, serializer="json").delete()
    assert eventually(lambda: sorted(list_queued(queue)) == sorted([waiting, running]))
    revived = queue.fetch_job(waiting)
    assert revived is not None
    assert (revived.func_name, revived.retries_left) == (RUN_JOB, ServiceSettings().job_retries)


def test_a_job_that_is_known_but_in_no_list_is_queued_again(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    job_id = post(api)
    assert queue.get_job_ids() == [job_id]
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
    assert list_queued(queue) == []


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
    assert list_queued(queue) == []
    assert QueuedJob.fetch(job_id, connection=redis, serializer="json").is_started


def test_a_queued_job_without_a_record_is_dropped(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    first, kept, lost = post(api), post(api), post(api)
    redis.delete(job_key(first), job_key(lost))
    assert eventually(lambda: list_queued(queue) == [kept])


def test_jobs_that_wait_are_put_back_from_their_records(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    """Into the order in which they came: the queue server lost its last second, say, or a key is of another type."""
    first, *waiting = [post(api) for _ in range(4)]
    assert list_queued(queue) == [first, *waiting]
    redis.delete(*(f"chorale:{name}:{queue.name}" for name in ("waiting", "turns", "served")))
    assert eventually(lambda: list_queued(queue) == [first, *waiting])
    redis.delete(f"chorale:waiting:{queue.name}")
    redis.set(f"chorale:waiting:{queue.name}", "x")
    assert eventually(lambda: redis.type(f"chorale:waiting:{queue.name}") == b"zset")
    assert eventually(lambda: list_queued(queue) == [first, *waiting])


def test_what_rq_is_just_deleting_stops_neither_cancel_nor_the_others(
    api: httpx.Client, story: Story, queue: Queue, redis: Redis
) -> None:
    """RQ deletes a job that ended while it is looked at: it then finds no status, and says InvalidJobOperation."""
    canceled, fading, lost = post(api), post(api), post(api)
    for job_id in (canceled, fading):
        redis.hdel(QueuedJob.key_for(job_id), "status")
    answer = api.post(f"/v1/jobs/{canceled}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    QueuedJob.fetch(lost, connection=redis, serializer="json").delete()
    assert eventually(lambda: sorted(list_queued(queue)) == sorted([fading, lost]))
    assert eventually(lambda: redis.hget(QueuedJob.key_for(fading), "status") == b"queued")
    assert api.get("/readyz").json()["background"] == {}


def test_cancels_that_meet_the_end_of_their_jobs_are_all_answered(
    api: httpx.Client, story: Story, redis: Redis
) -> None:
    """A worker that finds a job canceled is done with it at once, and RQ deletes it, as the service does."""
    jobs = [post(api) for _ in range(60)]

    def finish(job_id: str) -> None:
        with suppress(NoSuchJobError, InvalidJobOperation):
            QueuedJob.fetch(job_id, connection=redis, serializer="json").delete()

    with ThreadPoolExecutor(8) as pool:
        ends = [pool.submit(finish, job_id) for job_id in jobs]
        answers = list(pool.map(lambda job_id: api.post(f"/v1/jobs/{job_id}/cancel"), jobs))
        for end in ends:
            end.result()
    assert {answer.status_code for answer in answers} == {200}
    assert api.get("/readyz").json()["background"] == {}
