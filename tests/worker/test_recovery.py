"""What is killed or frozen in the middle of a job does not change its picture."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rq.job import Job as RqJob

from api_schemas.events import JobPreempted, JobResumed, PhaseStarted, StepCompleted
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.bench import Bench, own_bench
from tests.worker.processes import find_engine, is_running

SLOW = "toy:delay_ms=60"  # 4 tiles a step
STEPS = 8
TINY_STEPS = 12


class TinyBench:
    """A bench whose worker serves a folder with random weights and a multistep solver: the picture depends on every
    step's state. The toy's does not, it comes to its picture from anywhere.

    To load such a folder takes seconds: each test takes over the worker that the one before has left.
    """

    def __init__(self, bench: Bench, model: str) -> None:
        self.bench, self._model = bench, model
        self._worker = bench.start_worker(model)
        self.undisturbed = bench.picture(bench.await_end(submit_tiny(bench), timeout_s=300))

    def find_worker(self) -> subprocess.Popen[bytes]:
        """The one that lives, or a new one."""
        if self._worker.poll() is not None:
            self._worker = self.bench.start_worker(self._model)
        return self._worker


def submit_tiny(bench: Bench) -> str:
    """16 tiles a step, two predictions each."""
    return bench.submit(
        model="tiny", steps=TINY_STEPS, guidance_scale=3.0, prompt="lava", layout="flat",
        width_px=256, height_px=256,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyBench]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    with own_bench(tmp_path_factory.mktemp("bench")) as bench:
        yield TinyBench(bench, str(folder))


def test_a_killed_engine_is_replaced_and_goes_on(tiny: TinyBench) -> None:
    bench, worker = tiny.bench, tiny.find_worker()
    job_id = submit_tiny(bench)
    bench.await_event(job_id, "step.completed", 3)
    os.kill(find_engine(worker.pid), signal.SIGKILL)
    job = bench.await_end(job_id)
    (resumed,) = (event for event in bench.events(job_id) if isinstance(event, JobResumed))
    assert resumed.data.step >= 2
    assert bench.types(job_id).count("step.completed") <= TINY_STEPS + 2
    assert job.attempt == 2
    bench.require_picture(job, tiny.undisturbed)


def submit_cascade(bench: Bench) -> str:
    """64 px, then 128, 256 and 512: 6, 3, 2 and 2 steps of 1, 4, 16 and 64 tiles."""
    return bench.submit(
        model="tiny", steps=6, guidance_scale=3.0, prompt="lava", layout="cascade",
        advanced={"stages": [{}, {"strength": 0.5}]},
    )  # fmt: skip


def test_a_cascade_that_was_killed_twice_goes_on_to_the_same_bytes(tiny: TinyBench) -> None:
    """In the second stage, and on the way to the last."""
    bench, worker = tiny.bench, tiny.find_worker()
    undisturbed = bench.await_end(submit_cascade(bench))
    job_id = submit_cascade(bench)
    for after in (7, 11):
        bench.await_that(lambda step=after: _furthest(bench, job_id) >= step, f"step {after}")
        bench.await_that(lambda: _kept(bench, job_id) >= 6, "checkpoint of the second stage")
        os.kill(find_engine(worker.pid), signal.SIGKILL)
    job = bench.await_end(job_id)
    bench.require_picture(job, bench.picture(undisturbed))
    first, second = (event.data.step for event in bench.events(job_id) if isinstance(event, JobResumed))
    assert 6 <= first <= second
    stages = [event.data for event in bench.events(undisturbed.id) if isinstance(event, PhaseStarted)]
    assert [(data.level, data.width_px, data.done, data.steps) for data in stages[:-2]] == [
        (1, 64, 0, 6),
        (2, 128, 6, 3),
        (3, 256, 9, 2),
        (4, 512, 11, 2),
    ]
    assert {data.total for data in stages[:-2]} == {13}


def _furthest(bench: Bench, job_id: str) -> int:
    steps = [event.data.step for event in bench.events(job_id) if isinstance(event, StepCompleted)]
    return max(steps, default=0)


def _kept(bench: Bench, job_id: str) -> int:
    names = [Path(key).name for key in bench.files(job_id) if key.endswith(".safetensors")]
    return max((int(name.partition("-")[0]) for name in names), default=0)


def test_a_killed_workers_job_goes_on_at_a_peer(tiny: TinyBench) -> None:
    bench, first = tiny.bench, tiny.find_worker()
    job_id = submit_tiny(bench)
    bench.await_event(job_id, "step.completed", 3)
    engine = find_engine(first.pid)
    first.kill()
    first.wait()
    tiny.find_worker()
    job = bench.await_end(job_id)
    (resumed,) = (event for event in bench.events(job_id) if isinstance(event, JobResumed))
    assert resumed.data.step >= 1
    bench.require_picture(job, tiny.undisturbed)
    assert not is_running(engine)
    # RQ forgets a job that has ended, and has not tried it once more.
    bench.await_that(lambda: not bench.redis.exists(f"rq:job:{job_id}"), "forgotten job")
    assert "ValueError" not in bench.logs()


def test_a_terminated_worker_hands_its_job_back(tiny: TinyBench) -> None:
    bench, first = tiny.bench, tiny.find_worker()
    job_id = submit_tiny(bench)
    bench.await_event(job_id, "step.completed", 3)
    first.terminate()
    assert first.wait(30) == 0
    (preempted,) = (event for event in bench.events(job_id) if isinstance(event, JobPreempted))
    assert preempted.data.step >= 3
    assert bench.job(job_id).status == "queued"
    waiting = RqJob.fetch(job_id, connection=bench.redis, serializer="json")
    assert waiting.retries_left == 10  # preemption is nobody's fault
    tiny.find_worker()
    job = bench.await_end(job_id)
    (resumed,) = (event for event in bench.events(job_id) if isinstance(event, JobResumed))
    assert resumed.data.step == preempted.data.step
    bench.require_picture(job, tiny.undisturbed)


def test_a_job_that_kills_every_engine_ends(bench: Bench) -> None:
    worker = bench.start_worker("toy:delay_ms=400", max_attempts=2)
    job_id = bench.submit(steps=2)
    bench.await_event(job_id, "job.started")
    for attempt in range(2):
        bench.await_event(job_id, "job.resumed", attempt)
        bench.await_event(job_id, "phase.started", attempt + 1)
        os.kill(find_engine(worker.pid), signal.SIGKILL)
    job = bench.await_end(job_id)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "too_many_attempts")
    bench.make(steps=1)


def test_a_job_whose_workers_are_all_lost_ends(bench: Bench) -> None:
    job_id = bench.submit(steps=50, retries=1)
    for attempt in range(2):
        worker = bench.start_worker("toy:delay_ms=200")
        bench.await_event(job_id, "phase.started", attempt + 1)
        worker.kill()
        worker.wait()
    bench.start_worker()
    job = bench.await_end(job_id)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "too_many_attempts")


def test_a_frozen_engine_is_killed_and_the_job_goes_on(bench: Bench) -> None:
    worker = bench.start_worker(SLOW, stall_timeout_s=20)
    undisturbed = bench.make(steps=STEPS)
    job_id = bench.submit(steps=STEPS)
    bench.await_event(job_id, "step.completed", 2)
    os.kill(find_engine(worker.pid), signal.SIGSTOP)
    job = bench.await_end(job_id)
    assert "job.resumed" in bench.types(job_id)
    bench.require_picture(job, undisturbed)
