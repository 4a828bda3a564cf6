"""Engines and workers are killed at random while jobs run: nothing is lost, nothing comes twice."""

import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field

from api_schemas.events import JobSucceeded
from api_schemas.job import TERMINAL
from tests.worker.bench import Bench, result_of
from tests.worker.processes import find_engine, is_running

JOBS = 3
KILLING_S = 10
MODEL = "toy:delay_ms=30"
WORKERS = 2
PATIENT = 100  # many kills in a row before a model is even loaded are bad luck, not poison


@dataclass
class Killer:
    """Kills a worker or an engine every second or two, and hires a new worker for a dead one."""

    bench: Bench
    workers: list[subprocess.Popen[bytes]]
    chance: random.Random
    kills: dict[str, int] = field(default_factory=lambda: {"worker": 0, "engine": 0})

    def run_until(self, deadline: float, jobs: list[str]) -> None:
        while time.monotonic() < deadline and not self._have_ended(jobs):
            time.sleep(self.chance.uniform(0.5, 2))
            self._kill_one()

    def _have_ended(self, jobs: list[str]) -> bool:
        return all(self.bench.job(job_id).status in TERMINAL for job_id in jobs)

    def _kill_one(self) -> None:
        index = self.chance.randrange(len(self.workers))
        victim = self.workers[index]
        if self.chance.random() < 0.3:
            victim.kill()
            victim.wait()
            self.workers[index] = self.bench.start_worker(MODEL, max_attempts=PATIENT)
            self.kills["worker"] += 1
        else:
            try:
                os.kill(find_engine(victim.pid), signal.SIGKILL)
                self.kills["engine"] += 1
            except (LookupError, ProcessLookupError):
                return  # it has none just now


def test_every_job_ends_once_with_the_bytes_of_an_undisturbed_one(bench: Bench) -> None:
    seed = random.randrange(1 << 32)
    print(f"chaos seed {seed}")
    workers = [bench.start_worker(MODEL, max_attempts=PATIENT) for _ in range(WORKERS)]
    requests = [{"steps": 12, "prompt": str(number)} for number in range(JOBS)]
    undisturbed = [bench.make(**request) for request in requests]
    jobs = [bench.submit(retries=PATIENT, **request) for request in requests]
    killer = Killer(bench, workers, random.Random(seed))
    killer.run_until(time.monotonic() + KILLING_S, jobs)
    ended = [bench.await_end(job_id, timeout_s=90) for job_id in jobs]
    print(f"kills {killer.kills}, attempts {[job.attempt for job in ended]}")
    assert killer.kills["engine"] + killer.kills["worker"] >= 3
    assert [job.status for job in ended] == ["succeeded"] * JOBS
    assert [bench.picture(job) for job in ended] == undisturbed
    for job in ended:
        committed = [event for event in bench.events(job.id) if isinstance(event, JobSucceeded)]
        assert [event.data.result for event in committed] == [result_of(job)]


def test_no_engine_outlives_its_worker(bench: Bench) -> None:
    workers = [bench.start_worker(MODEL) for _ in range(WORKERS)]
    bench.make()
    bench.await_that(lambda: len(bench.redis.keys("chorale:worker:*")) == WORKERS, "two workers")
    engines = [find_engine(worker.pid) for worker in workers]
    for worker in workers:
        worker.kill()
        worker.wait()
    bench.await_that(lambda: not any(map(is_running, engines)), "end of the engines")
