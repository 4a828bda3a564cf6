"""An attempt tells the job's log what the engine reports, and ends as it must."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_schemas import preview_frames, wire
from api_schemas.errors import ErrorCode
from api_schemas.events import (
    BandFinishedData,
    PhaseStartedData,
    ResumedData,
    StartedData,
    StepCompletedData,
    TilePreviewedData,
    WarnedData,
)
from tests.worker.bench import Bench
from tests.worker.scripted_engine import ScriptedEngine, make_context
from worker.attempt import Attempt
from worker.checkpoints import CheckpointStore
from worker.context import JobContext
from worker.errors import (
    CanceledError,
    DiskFullError,
    EngineStalledError,
    FencedError,
    JobFailedError,
    PreemptedError,
)
from worker.events import EventLog
from worker.process.protocol import (
    BandReport,
    CellsPreviewed,
    CheckpointWritten,
    Failed,
    Generate,
    Generated,
    ModelRefused,
    PreviewCell,
    PreviewsPublished,
    Report,
    StepReport,
    StillWorking,
    Stop,
    Stopped,
)
from worker.watch import Watch

LARGE = 96 << 20  # takes a moment to store
MEGAPIXELS = 512 * 512 / 1e6
DONE = Generated(Path("image.tif"), Path("state.safetensors"), 1.0)
STEP = StepReport(StepCompletedData(step=1, steps=2, tiles=4, eta_s=None), work=4, work_left=4, seconds=2.0)
BAND = BandReport(
    BandFinishedData(top_px=0, height_px=256, bands_done=1, bands=2, eta_s=None),
    decoded_px=1_000_000,
    seconds=0.25,
)


def run(bench: Bench, context: JobContext, job_id: str) -> Generated:
    """One attempt, as the runner makes it."""
    log = EventLog(bench.redis, job_id)
    log.claim(StartedData(worker="w", execution="first"))
    with CheckpointStore(context.storage, job_id) as checkpoints:
        job = Generate(log.job.request, context.work_dir, None, {})
        return Attempt(context, log, checkpoints, Watch(context, log)).run(job)


def run_script(bench: Bench, folder: Path, *reports: Report | None) -> tuple[ScriptedEngine, str]:
    """An attempt whose engine reports this and is done."""
    engine = ScriptedEngine(lambda _: iter([*reports, DONE]))
    job_id = bench.submit()
    assert run(bench, make_context(bench, engine, folder), job_id) == DONE
    return engine, job_id


def test_reports_become_events_in_their_order(bench: Bench, tmp_path: Path) -> None:
    stage = PhaseStartedData(phase="denoise", total=2, done=1, level=1, levels=1, width_px=512)
    warned = WarnedData(code="compiling", message="a new shape")
    decode = PhaseStartedData(phase="decode", total=2)
    _, job_id = run_script(bench, tmp_path, warned, stage, STEP, StillWorking(), None, decode, BAND)
    told = [event.data for event in bench.events(job_id)[2:]]
    assert [told[0], told[1], told[3]] == [warned, stage, decode]
    assert told[2] == STEP.data.model_copy(update={"eta_s": told[2].eta_s})
    assert told[4] == BAND.data.model_copy(update={"eta_s": told[4].eta_s})


def test_the_time_left_is_that_of_tiles_decoding_and_storing(bench: Bench, tmp_path: Path) -> None:
    """At 0.5 s a tile, 0.25 s and 0.125 s a megapixel to decode and to store, as both reports measured."""
    _, job_id = run_script(bench, tmp_path, STEP, BAND)
    step, band = bench.events(job_id)[2:]
    assert step.data.eta_s == pytest.approx(4 * 0.5 + MEGAPIXELS * (0.25 + 0.125), abs=0.05)
    assert band.data.eta_s == pytest.approx(MEGAPIXELS * (0.5 * 0.25 + 0.125), abs=0.05)


def test_steps_without_guidance_are_half_the_work(bench: Bench, tmp_path: Path) -> None:
    """Four tiles in 1 s, of which one branch of two was predicted, and as many left under both: 2 s."""
    report = StepReport(STEP.data, work=2, work_left=4, seconds=1.0)
    _, job_id = run_script(bench, tmp_path, report)
    step = bench.events(job_id)[2]
    assert step.data.eta_s == pytest.approx(4 * 0.5 + MEGAPIXELS * (0.25 + 0.125), abs=0.05)


def test_a_slower_engine_makes_the_time_left_longer(bench: Bench, tmp_path: Path) -> None:
    slow = StepReport(STEP.data, work=4, work_left=4, seconds=40.0)
    _, job_id = run_script(bench, tmp_path, *[slow] * 20)
    times = [event.data.eta_s for event in bench.events(job_id)[2:]]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(4 * 10, rel=0.02)


def test_every_message_of_previews_is_published_and_confirmed_once(bench: Bench, tmp_path: Path) -> None:
    places = (0, 0), (0, 512), (512, 0)
    cells = [
        PreviewCell(
            TilePreviewedData(left_px=left, top_px=top, width_px=9, height_px=9, phase="denoise", step=1),
            b"jpeg",
        )
        for top, left in places
    ]
    reports = CellsPreviewed((cells[0], cells[1])), CellsPreviewed((cells[2],))
    engine, job_id = run_script(bench, tmp_path, *reports)
    assert engine.commands[1:] == [PreviewsPublished(), PreviewsPublished()]
    frames = bench.redis.hgetall(wire.previews_key(job_id)).values()
    events = [preview_frames.unpack_preview(frame)[0] for frame in frames]
    assert {(event.data.top_px, event.data.left_px) for event in events} == set(places)


@pytest.mark.parametrize("code", ["non_finite_latent", "out_of_memory", "engine_failed"])
@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_is_passed_on_as_it_was_reported(
    bench: Bench, tmp_path: Path, code: ErrorCode, retryable: bool
) -> None:
    with pytest.raises(JobFailedError, match="tile 3 of 4") as raised:
        run_script(bench, tmp_path, STEP, Failed(code, "tile 3 of 4", retryable=retryable))
    assert (raised.value.code, raised.value.retryable) == (code, retryable)


def test_a_full_disk_is_worth_waiting_for(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="no space"):
        run_script(bench, tmp_path, Failed("disk_full", "no space", retryable=True))


def test_a_worker_whose_model_is_refused_shuts_down_and_gives_the_job_back(
    bench: Bench, tmp_path: Path
) -> None:
    context = make_context(bench, ScriptedEngine(lambda _: iter([ModelRefused("no GPU")])), tmp_path)
    with pytest.raises(PreemptedError, match="no GPU"):
        run(bench, context, bench.submit())
    assert context.stop.is_set()


def test_a_worker_that_shuts_down_waits_for_the_step_and_its_checkpoint(bench: Bench, tmp_path: Path) -> None:
    """Its upload has to wait for another, which is large."""
    large, path = tmp_path / "large.safetensors", tmp_path / "checkpoint.safetensors"
    large.write_bytes(bytes(LARGE))
    path.write_bytes(b"state")

    def work(_: Generate) -> Iterator[Report | None]:
        yield from (STEP, CheckpointWritten(1, large))
        context.stop.set()
        yield from (STEP, CheckpointWritten(2, path), Stopped(2))

    engine, job_id = ScriptedEngine(work), bench.submit()
    context = make_context(bench, engine, tmp_path)
    with pytest.raises(PreemptedError) as raised:
        run(bench, context, job_id)
    assert raised.value.step == 2
    assert engine.commands[1:] == [Stop(finish_step=True)]
    *_, newest = bench.files(job_id)
    assert (bench.store / newest).read_bytes() == b"state"


def test_an_engine_without_a_word_is_stalled_and_one_that_still_works_is_not(
    bench: Bench, tmp_path: Path
) -> None:
    def work(_: Generate) -> Iterator[Report]:
        for _ in range(8):
            time.sleep(0.25)
            yield StillWorking()

    engine = ScriptedEngine(work)
    context = make_context(bench, engine, tmp_path, stall_timeout_s=1.5)
    with pytest.raises(EngineStalledError, match=r"1\.5 s"):
        run(bench, context, bench.submit())
    assert engine.receive(0) is None, "2 s of reports were read first"


@pytest.mark.parametrize("by_operator", [True, False])
def test_a_canceled_job_ends_with_the_next_report(bench: Bench, tmp_path: Path, by_operator: bool) -> None:
    def work(_: Generate) -> Iterator[Report]:
        yield STEP
        if by_operator:
            context.cancel.set()
        else:
            bench.redis.set(wire.cancel_key(job_id), "1")
        yield STEP

    job_id = bench.submit()
    context = make_context(bench, ScriptedEngine(work), tmp_path)
    with pytest.raises(CanceledError, match="operator" if by_operator else "request"):
        run(bench, context, job_id)
    assert bench.types(job_id).count("step.completed") == 1


def test_an_attempt_ends_when_a_newer_one_owns_the_job(bench: Bench, tmp_path: Path) -> None:
    def work(_: Generate) -> Iterator[Report]:
        yield STEP
        EventLog(bench.redis, job_id).claim(ResumedData(worker="peer", execution="second", step=0))
        yield STEP

    job_id = bench.submit()
    with pytest.raises(FencedError):
        run(bench, make_context(bench, ScriptedEngine(work), tmp_path), job_id)
    assert bench.types(job_id) == ["job.queued", "job.started", "step.completed", "job.resumed"]


def test_a_step_without_end_does_not_hold_up_a_worker_that_shuts_down(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"state")

    def work(_: Generate) -> Iterator[Report | None]:
        yield from (STEP, CheckpointWritten(1, path))
        context.stop.set()
        while True:
            yield StillWorking()

    engine = ScriptedEngine(work)
    context = make_context(bench, engine, tmp_path, drain_timeout_s=0.2)
    with pytest.raises(PreemptedError, match=r"longer than 0\.2 s") as raised:
        run(bench, context, bench.submit())
    assert raised.value.step == 1
    assert engine.commands[1:] == [Stop(finish_step=True)]
