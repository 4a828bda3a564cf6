"""What is asked to stop, or loses store, queue or lease for a while, does as it should."""

import os
import signal
import time
from pathlib import Path

import pytest
from redis import Redis
from rq.command import send_stop_job_command

from api_schemas import wire
from api_schemas.events import JobDelayed, JobPreempted
from tests.poison import change_type
from tests.worker.bench import Bench
from tests.worker.processes import find_engine

SLOW = "toy:delay_ms=60"  # 4 tiles a step
STEPS = 8
NO_FOLDER = "disk_unwritable: the work folder cannot be written: not a directory"


def test_a_canceled_job_stops_within_a_step(bench: Bench) -> None:
    worker = bench.start_worker("toy:delay_ms=200")
    job_id = bench.submit(steps=100)
    bench.await_event(job_id, "step.completed")
    engine = find_engine(worker.pid)
    before = bench.types(job_id).count("step.completed")
    bench.redis.set(wire.cancel_key(job_id), "1")
    job = bench.await_end(job_id)
    assert bench.types(job_id).count("step.completed") <= before + 2  # one ended while it was asked
    assert job.status == "canceled"
    bench.await_that(lambda: bench.files() == [], "empty store")
    bench.make(steps=1)
    assert find_engine(worker.pid) == engine  # the loaded model was not lost


def test_an_operator_can_stop_a_job_through_rq(bench: Bench) -> None:
    bench.start_worker(SLOW)
    job_id = bench.submit(steps=100)
    bench.await_event(job_id, "step.completed")
    send_stop_job_command(bench.redis, job_id, serializer="json")
    assert bench.await_end(job_id).status == "canceled"
    bench.make(steps=1)


def test_a_job_waits_for_a_store_that_comes_back(bench: Bench) -> None:
    bench.start_worker(SLOW)
    undisturbed = bench.make(steps=2)
    job_id = bench.submit(steps=2)
    bench.await_event(job_id, "job.started")
    bench.lose_store()
    bench.await_event(job_id, "job.delayed", 2)
    assert bench.job(job_id).status == "processing"
    bench.store.unlink()
    job = bench.await_end(job_id)
    delays = [event.data for event in bench.events(job_id) if isinstance(event, JobDelayed)]
    assert delays[0].reason.startswith("storage_unavailable")
    assert delays[0].retry_in_s < delays[1].retry_in_s
    bench.require_picture(job, undisturbed)


def test_a_job_waits_in_the_queue_while_the_store_stays_away(bench: Bench) -> None:
    bench.start_worker(SLOW, storage_patience_s=1)
    undisturbed = bench.make(steps=2)
    job_id = bench.submit(steps=2)
    bench.await_event(job_id, "job.started")
    bench.lose_store()
    bench.await_event(job_id, "job.preempted")
    (given_back,) = [event.data for event in bench.events(job_id) if isinstance(event, JobPreempted)]
    assert given_back.reason == "storage_unavailable: the object store does not answer"
    assert bench.job(job_id).status == "queued"
    bench.store.unlink()
    bench.require_picture(bench.await_end(job_id), undisturbed)


def test_a_worker_that_starts_without_its_folders_waits_for_them(bench: Bench, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_text("a file where a folder should be")
    bench.lose_store()
    bench.start_worker(work_dir=disk / "work")
    job_id = bench.submit()
    bench.await_that(lambda: pauses(bench) == [NO_FOLDER], "pause")
    disk.unlink()
    bench.await_that(
        lambda: pauses(bench) == ["storage_unavailable: the object store does not answer"], "pause"
    )
    assert bench.job(job_id).status == "queued"
    bench.store.unlink()
    job = bench.await_end(job_id)
    assert (job.status, job.attempt, pauses(bench)) == ("succeeded", 1, [])


def pauses(bench: Bench) -> list[str]:
    """Why workers take no jobs."""
    return [bench.redis.get(key).decode() for key in bench.redis.keys("chorale:paused:*")]


def test_a_job_that_fails_half_stored_leaves_nothing(bench: Bench) -> None:
    """The picture is stored, its pyramid is not: a folder lies where one of its files belongs."""
    bench.start_worker(SLOW, storage_patience_s=0)
    job_id = bench.submit()
    bench.await_event(job_id, "step.completed")
    token = bench.redis.hget(wire.job_key(job_id), "execution").decode()
    obstacle = bench.store / "jobs" / job_id / token / "image.dzi"
    (obstacle / "folder").mkdir(parents=True)
    assert bench.await_end(job_id).status == "failed"
    bench.await_that(lambda: bench.files(job_id) == [], "empty store")


def test_a_job_that_was_taken_but_never_started_comes_back(bench: Bench) -> None:
    job_id = bench.submit()
    # What a worker leaves that is killed between taking a job and starting it.
    queue = f"rq:queue:{wire.queue_name('toy')}"
    bench.redis.lmove(queue, f"{queue}:intermediate")
    bench.start_worker()
    assert bench.await_end(job_id).status == "succeeded"


def test_a_job_that_runs_is_not_taken_twice(bench: Bench) -> None:
    """Not when its lease would have run out, if nobody renewed it, nor when it is delivered again."""
    bench.start_worker(SLOW)
    bench.start_worker(SLOW)
    job_id = bench.submit(steps=45)  # 11 s; the lease is 3 s, and the other worker looks every 5 s
    bench.await_event(job_id, "step.completed")
    bench.redis.lpush(f"rq:queue:{wire.queue_name('toy')}", job_id)
    job = bench.await_end(job_id)
    assert (job.status, job.attempt) == ("succeeded", 1)


@pytest.mark.parametrize("away_s", [0.5, 4.0])
def test_a_job_survives_a_time_without_redis(bench: Bench, away_s: float) -> None:
    bench.start_worker(SLOW)
    undisturbed = bench.make(steps=STEPS)
    job_id = bench.submit(steps=STEPS)
    bench.await_event(job_id, "step.completed", 2)
    server = _server_pid(bench.redis)
    os.kill(server, signal.SIGSTOP)
    time.sleep(away_s)
    os.kill(server, signal.SIGCONT)
    job = bench.await_end(job_id)
    bench.require_picture(job, undisturbed)


def _server_pid(redis: Redis) -> int:
    return int(redis.info("server")["process_id"])


def test_keys_of_a_worker_may_change_their_type_at_any_moment(bench: Bench) -> None:
    """Also between what sets them aside and what writes them: they are changed without a pause."""
    bench.start_worker("toy:delay_ms=20", lease_s=2)
    job_id = bench.submit(steps=24)
    bench.await_event(job_id, "step.completed")
    (worker,) = bench.redis.smembers("rq:workers")
    while bench.types(job_id).count("step.completed") < 18:
        for _ in range(100):
            change_type(bench.redis, worker)
    job = bench.await_end(job_id)
    assert (job.status, job.attempt) == ("succeeded", 1)


def test_a_zombie_finds_itself_fenced_and_works_on(bench: Bench) -> None:
    """A consumer that is frozen beyond its lease wakes up when a peer owns its job."""
    zombie = bench.start_worker(SLOW)
    undisturbed = bench.make(steps=STEPS)
    job_id = bench.submit(steps=STEPS)
    bench.await_event(job_id, "step.completed", 2)
    zombie.send_signal(signal.SIGSTOP)
    peer = bench.start_worker(SLOW)
    bench.await_event(job_id, "job.resumed")
    zombie.send_signal(signal.SIGCONT)
    job = bench.await_end(job_id)
    assert job.attempt == 2
    bench.require_picture(job, undisturbed)
    assert [event.attempt for event in bench.events(job_id)][-1] == 2
    peer.terminate()
    assert peer.wait(30) == 0
    assert bench.make(steps=STEPS) == undisturbed  # by the former zombie
