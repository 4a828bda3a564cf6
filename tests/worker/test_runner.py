"""One job from the queue to its last event, with an engine that does as a test says."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pyvips
import torch
from rq import Retry

from api_schemas import wire
from api_schemas.events import (
    CanceledData,
    JobDelayed,
    JobPreempted,
    JobResumed,
    PhaseStarted,
    ResumedData,
    StartedData,
    StepCompletedData,
)
from api_schemas.wire import STATE_FILE
from tests.worker.bench import Bench, result_of
from tests.worker.scripted_engine import ScriptedEngine, make_context, write_picture
from worker.context import JOB_CONTEXT, JobContext
from worker.engine.denoise import Checkpoint
from worker.errors import EngineLostError, EngineStalledError
from worker.events import EventLog
from worker.machine import Machine
from worker.process.files import CheckpointWriter
from worker.process.protocol import (
    CheckpointWritten,
    Failed,
    Generate,
    Report,
    StepReport,
    Stopped,
)
from worker.runner import RELEASED, run_job
from worker.state_files import read_checkpoint


def run(context: JobContext, job_id: str) -> Retry | str:
    token = JOB_CONTEXT.set(context)
    try:
        return run_job(job_id)
    finally:
        JOB_CONTEXT.reset(token)


def complete_step(number: int) -> StepReport:
    data = StepCompletedData(step=number, steps=4, tiles=4, eta_s=None)
    return StepReport(data, work=4, work_left=4, seconds=1.0)


def write_checkpoint(job: Generate, step: int) -> CheckpointWritten:
    return CheckpointWriter(job.folder, 0).write(Checkpoint(step, {"latent": torch.ones(4)}, {}), 1.0)


def succeed(job: Generate) -> Iterator[Report]:
    yield complete_step(4)
    yield write_checkpoint(job, 4)
    yield write_picture(job)


def die_after_two_steps(job: Generate) -> Iterator[Report | Exception]:
    yield complete_step(2)
    yield write_checkpoint(job, 2)
    yield EngineLostError("killed")


def test_a_job_ends_as_stored_files_and_leaves_nothing_else(bench: Bench, tmp_path: Path) -> None:
    job_id, engine = bench.submit(), ScriptedEngine(succeed)
    assert run(make_context(bench, engine, tmp_path), job_id) == "succeeded"
    job = bench.job(job_id)
    result = result_of(job)
    assert (job.status, result.width_px, result.height_px, result.engine_s) == ("succeeded", 512, 512, 1.5)
    assert pyvips.Image.new_from_buffer(bench.picture(job), "").avg() == 90
    prefix = f"{result.pyramid_key}/"
    assert all(key.startswith(prefix) for key in bench.files(job_id))
    assert f"{prefix}{STATE_FILE}" in bench.files(job_id)
    assert list(tmp_path.glob("tmp*")) == []
    assert (engine.restarts, engine.stops) == (0, 0)
    (storing,) = [event.data for event in bench.events(job_id) if isinstance(event, PhaseStarted)]
    assert (storing.phase, storing.total) == ("store", 2)


def test_a_lost_engine_is_restarted_and_continues_from_the_newest_checkpoint(
    bench: Bench, tmp_path: Path
) -> None:
    job_id, engine = bench.submit(), ScriptedEngine(die_after_two_steps, succeed)
    assert run(make_context(bench, engine, tmp_path), job_id) == "succeeded"
    first, second = engine.jobs
    assert (first.checkpoint, engine.restarts) == (None, 1)
    assert second.checkpoint is not None
    assert second.checkpoint.name.startswith("checkpoint-0002")
    (resumed,) = [event for event in bench.events(job_id) if isinstance(event, JobResumed)]
    assert (resumed.attempt, resumed.data.step) == (2, 2)


def test_another_worker_continues_from_the_stored_checkpoint(bench: Bench, tmp_path: Path) -> None:
    def stop(job: Generate) -> Iterator[Report]:
        yield complete_step(2)
        yield write_checkpoint(job, 2)
        yield Stopped(2)

    def resume(job: Generate) -> Iterator[Report]:
        assert job.checkpoint is not None
        found.append(read_checkpoint(job.checkpoint)[0].step)
        yield from succeed(job)

    job_id, found = bench.submit(), list[int]()
    given_back = run(make_context(bench, ScriptedEngine(stop), tmp_path), job_id)
    assert isinstance(given_back, Retry)
    assert given_back.enqueue_at_front
    preempted = bench.events(job_id)[-1]
    assert isinstance(preempted, JobPreempted)
    assert preempted.data.step == 2
    assert run(make_context(bench, ScriptedEngine(resume), tmp_path), job_id) == "succeeded"
    assert found == [2]


@pytest.mark.parametrize("error", [EngineLostError("killed"), EngineStalledError("no progress")])
def test_a_job_without_progress_fails_after_its_attempts(
    bench: Bench, tmp_path: Path, error: Exception
) -> None:
    job_id, engine = bench.submit(), ScriptedEngine(*[lambda _: iter([error])] * 9)
    assert run(make_context(bench, engine, tmp_path, max_attempts=3), job_id) == "failed"
    job = bench.job(job_id)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("too_many_attempts", False)
    assert (len(engine.jobs), engine.restarts, job.attempt) == (3, 3, 3)


def test_what_the_engine_reports_is_the_jobs_error_and_its_files_are_deleted(
    bench: Bench, tmp_path: Path
) -> None:
    """Also a checkpoint that is still being uploaded."""

    def fail(job: Generate) -> Iterator[Report]:
        written = write_checkpoint(job, 2)
        written.path.write_bytes(bytes(96 << 20))  # takes a moment to store
        yield written
        yield Failed("non_finite_latent", "step 3 of 4", retryable=False)

    job_id, engine = bench.submit(), ScriptedEngine(fail)
    assert run(make_context(bench, engine, tmp_path), job_id) == "failed"
    error = bench.job(job_id).error
    assert error is not None
    assert (error.code, error.message, error.retryable) == ("non_finite_latent", "step 3 of 4", False)
    assert bench.files(job_id) == []


def test_an_unforeseen_error_fails_the_job_and_keeps_its_message_from_clients(
    bench: Bench, tmp_path: Path
) -> None:
    job_id, engine = bench.submit(), ScriptedEngine(lambda _: iter([ValueError("/secret/path")]))
    assert run(make_context(bench, engine, tmp_path), job_id) == "failed"
    error = bench.job(job_id).error
    assert error is not None
    assert (error.code, error.retryable) == ("internal_error", True)
    assert "secret" not in error.message
    assert engine.stops == 1


def test_a_job_waits_for_space_on_the_disk(bench: Bench, tmp_path: Path) -> None:
    full = Failed("disk_full", "no space left in the work folder", retryable=True)
    job_id, engine = bench.submit(), ScriptedEngine(lambda _: iter([full]), succeed)
    assert run(make_context(bench, engine, tmp_path, storage_timeout_s=1), job_id) == "succeeded"
    (delay,) = [event.data for event in bench.events(job_id) if isinstance(event, JobDelayed)]
    assert (delay.reason, delay.retry_in_s) == ("disk_full: no space left in the work folder", 1.0)


def test_a_job_does_not_wait_longer_than_it_may(bench: Bench, tmp_path: Path) -> None:
    full = Failed("disk_full", "no space left in the work folder", retryable=True)
    job_id, engine = bench.submit(), ScriptedEngine(*[lambda _: iter([full])] * 9)
    assert run(make_context(bench, engine, tmp_path, storage_timeout_s=1), job_id) == "failed"
    error = bench.job(job_id).error
    assert error is not None
    assert (error.code, error.retryable) == ("disk_full", True)
    assert len(engine.jobs) == 2


def test_a_job_that_finds_no_work_folder_goes_back_as_it_was(bench: Bench, tmp_path: Path) -> None:
    job_id, engine = bench.submit(), ScriptedEngine()
    context = make_context(bench, engine, tmp_path / "gone")
    assert isinstance(run(context, job_id), Retry)
    assert context.machine.fault is not None
    assert context.machine.fault.code == "disk_unwritable"
    assert (bench.types(job_id), engine.commands) == (["job.queued"], [])


def test_a_job_for_which_no_disk_is_large_enough_fails_and_says_why(bench: Bench, tmp_path: Path) -> None:
    job_id, engine = bench.submit(), ScriptedEngine()
    context = make_context(bench, engine, tmp_path)
    machine = Machine(tmp_path, context.storage, reserve_bytes=1 << 60)
    bench.store.mkdir()
    assert run(replace(context, machine=machine), job_id) == "failed"
    error = bench.job(job_id).error
    assert error is not None
    assert error.code == "disk_full"
    assert re.match(
        r"the job may need .* MiB, and .* GiB are the whole disk of the work folder", error.message
    )
    assert "/" not in error.message


def test_a_canceled_job_stops_the_engine(bench: Bench, tmp_path: Path) -> None:
    def cancel(_: Generate) -> Iterator[Report]:
        bench.redis.set(wire.cancel_key(job_id), "1")
        yield complete_step(1)

    job_id, engine = bench.submit(), ScriptedEngine(cancel)
    assert run(make_context(bench, engine, tmp_path), job_id) == "canceled"
    assert (bench.job(job_id).status, engine.stops) == ("canceled", 1)


def test_a_job_that_misses_its_deadline_stops_the_engine_or_is_not_started(
    bench: Bench, tmp_path: Path
) -> None:
    def linger(_: Generate) -> Iterator[Report]:
        time.sleep(0.2)
        yield complete_step(1)

    def ask(_: Generate) -> Iterator[Report]:
        bench.redis.set(wire.cancel_key(asked), wire.EXPIRED)  # by the service, whose clock is ahead
        yield complete_step(1)

    late = bench.submit(start_within_s=0.001)
    time.sleep(0.01)
    slow, asked = bench.submit(finish_within_s=0.2), bench.submit(start_within_s=1, finish_within_s=60)
    for job_id, engine in (
        (late, ScriptedEngine()), (slow, ScriptedEngine(linger)), (asked, ScriptedEngine(ask)),
    ):  # fmt: skip
        assert run(make_context(bench, engine, tmp_path), job_id) == "expired"
        job = bench.job(job_id)
        assert job.error is not None
        assert (job.status, job.error.code, job.error.retryable) == ("expired", "deadline_missed", True)
        assert engine.stops == 1
    assert bench.types(late) == ["job.queued", "job.expired"]
    assert bench.job(slow).attempt == 1


def test_a_job_of_another_model_is_refused_before_the_engine_gets_it(bench: Bench, tmp_path: Path) -> None:
    job_id, engine = bench.submit(model="opera", queue_of="toy"), ScriptedEngine()
    assert run(make_context(bench, engine, tmp_path), job_id) == "failed"
    error = bench.job(job_id).error
    assert error is not None
    assert (error.code, error.message) == ("no_model", "this worker serves toy, not opera")
    assert engine.commands == []


def test_nothing_of_a_job_that_another_worker_owns_is_changed(bench: Bench, tmp_path: Path) -> None:
    def lose(job: Generate) -> Iterator[Report]:
        EventLog(bench.redis, job_id).claim(ResumedData(worker="peer", execution="second", step=0))
        (bench.store / "jobs" / job_id / "second").mkdir(parents=True)
        (bench.store / "jobs" / job_id / "second" / "image.png").write_text("the other's")
        before.append((bench.job(job_id), bench.files(job_id)))
        yield from succeed(job)

    job_id, before = bench.submit(), list[object]()
    engine = ScriptedEngine(lose)
    assert run(make_context(bench, engine, tmp_path), job_id) == RELEASED
    assert engine.stops == 1
    assert before == [(bench.job(job_id), bench.files(job_id))]


def test_a_job_that_has_ended_or_was_forgotten_is_not_run(bench: Bench, tmp_path: Path) -> None:
    job_id, engine = bench.submit(), ScriptedEngine()
    log = EventLog(bench.redis, job_id)
    log.claim(StartedData(worker="w", execution="first"))
    log.append(CanceledData(reason="enough"))
    context = make_context(bench, engine, tmp_path)
    assert run(context, job_id) == "canceled"
    assert run(context, "unknown") == RELEASED
    assert engine.commands == []
