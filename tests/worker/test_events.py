"""The log's one writer: fencing, races, and what it counts."""

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from api_schemas import preview_frames, wire
from api_schemas.events import (
    BandFinished,
    BandFinishedData,
    CanceledData,
    DelayedData,
    DurableEvent,
    JobDelayed,
    JobPreempted,
    JobResumed,
    PreemptedData,
    ResumedData,
    StartedData,
    StepCompleted,
    StepCompletedData,
    TilePreviewedData,
)
from tests.worker.bench import Bench
from worker.errors import FencedError
from worker.events import EventLog, count_fruitless_attempts
from worker.process.protocol import PreviewCell

STEP = StepCompletedData(step=1, steps=4, tiles=4, eta_s=1.0)


def start(log: EventLog) -> EventLog:
    log.claim(StartedData(worker="w", execution=uuid.uuid4().hex))
    return log


def resume(log: EventLog) -> EventLog:
    log.claim(ResumedData(worker="w", execution=uuid.uuid4().hex, step=0))
    return log


def test_a_zombies_append_is_refused_and_changes_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    zombie = start(EventLog(bench.redis, job_id))
    heir = resume(EventLog(bench.redis, job_id))
    before = bench.events(job_id)
    with pytest.raises(FencedError):
        zombie.append(STEP)
    with pytest.raises(FencedError):
        zombie.append(CanceledData(reason="I am gone"))
    assert bench.events(job_id) == before
    heir.append(STEP)
    assert bench.job(job_id).attempt == 2


def test_a_job_that_has_ended_takes_no_more_events(bench: Bench) -> None:
    job_id = bench.submit()
    late = EventLog(bench.redis, job_id)
    start(EventLog(bench.redis, job_id)).append(CanceledData(reason="enough"))
    with pytest.raises(FencedError):
        start(late)
    assert bench.types(job_id) == ["job.queued", "job.started", "job.canceled"]


def test_a_job_without_a_record_cannot_be_written(valkey: str) -> None:
    with pytest.raises(FencedError):
        EventLog(Redis.from_url(valkey), "unknown")


def test_racing_claims_get_different_attempts(bench: Bench) -> None:
    job_id = bench.submit()
    first, second = EventLog(bench.redis, job_id), EventLog(bench.redis, job_id)
    start(first)
    start(second)  # has read the record before the first one wrote
    assert [event.attempt for event in bench.events(job_id)] == [0, 1, 2]
    with pytest.raises(FencedError):
        first.append(STEP)


def test_live_entries_chain_without_a_gap(bench: Bench) -> None:
    job_id = bench.submit()
    log = start(EventLog(bench.redis, job_id))
    log.append(STEP)
    entries = [fields for _, fields in bench.redis.xrange(wire.LIVE_KEY)]
    seqs = [fields[b"seq"] for fields in entries]
    assert [fields[b"prev"] for fields in entries] == [b"", *seqs[:-1]]
    assert [seq.decode() for seq in seqs] == [event.seq for event in bench.events(job_id)]


def test_an_event_whose_answer_was_lost_is_not_written_twice(bench: Bench) -> None:
    job_id = bench.submit()
    log = start(EventLog(bench.redis, job_id))
    before = log.job
    log.append(STEP)
    # As after a broken connection: the script ran, but its answer never came.
    text = bench.redis.xrevrange(wire.events_key(job_id), count=1)[0][1][b"event"].decode()
    log.job = before
    assert log._read_again(text)
    assert log.job == bench.job(job_id)


def test_previews_go_to_live_readers_and_late_ones(bench: Bench) -> None:
    job_id = bench.submit()
    log = start(EventLog(bench.redis, job_id))
    data = TilePreviewedData(left_px=512, top_px=0, width_px=512, height_px=256, phase="denoise", step=3)
    log.publish_previews([PreviewCell(data, b"jpeg")])
    (frame,) = bench.redis.hgetall(wire.previews_key(job_id)).values()
    event, image = preview_frames.unpack_preview(frame)
    assert (event.job_id, event.attempt, event.data, image) == (job_id, 1, data, b"jpeg")
    live = [fields for _, fields in bench.redis.xrange(wire.LIVE_KEY) if b"frame" in fields]
    assert live == [{b"job": job_id.encode(), b"frame": frame}]


def test_previews_that_a_full_server_refuses_are_dropped(bench: Bench) -> None:
    log = start(EventLog(bench.redis, bench.submit()))
    data = TilePreviewedData(left_px=0, top_px=0, width_px=64, height_px=64, phase="denoise", step=1)
    bench.redis.config_set("maxmemory", 1)
    try:
        log.publish_previews([PreviewCell(data, b"jpeg")])
    finally:
        bench.redis.config_set("maxmemory", 0)
    assert not bench.redis.exists(wire.previews_key(log.job_id))


def attempt(number: int) -> DurableEvent:
    data = ResumedData(worker="w", execution="e", step=0)
    return JobResumed(job_id="j", attempt=number, ts=time.time(), data=data)


def step(number: int) -> DurableEvent:
    data = StepCompletedData(step=number, steps=99, tiles=1, eta_s=None)
    return StepCompleted(job_id="j", attempt=1, ts=0, data=data)


def band(number: int) -> DurableEvent:
    data = BandFinishedData(top_px=0, height_px=1, bands_done=number, bands=9, eta_s=None)
    return BandFinished(job_id="j", attempt=1, ts=0, data=data)


def preempted() -> DurableEvent:
    return JobPreempted(job_id="j", attempt=1, ts=0, data=PreemptedData(step=0, reason="r"))


def delayed() -> DurableEvent:
    return JobDelayed(job_id="j", attempt=1, ts=0, data=DelayedData(reason="r", retry_in_s=1))


@given(st.integers(1, 9), st.integers(0, 9))
def test_a_job_that_dies_at_the_same_step_is_poison(attempts: int, reached: int) -> None:
    """Every attempt does the same steps; only the first one is progress."""
    log = [
        event for number in range(attempts) for event in (attempt(number), *map(step, range(1, reached + 1)))
    ]
    assert count_fruitless_attempts(log) == (attempts - 1 if reached else attempts)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=9))
def test_a_job_that_gets_further_each_time_is_no_poison(gains: list[int]) -> None:
    log, done = [], 0
    for number, gain in enumerate(gains):
        log.append(attempt(number))
        log += [step(done + each) for each in range(1, gain + 1)]
        done += gain
    assert count_fruitless_attempts(log) == 0


@pytest.mark.parametrize("excuse", [preempted(), delayed()])
def test_attempts_that_ended_by_order_do_not_count(excuse: DurableEvent) -> None:
    log = [attempt(1), attempt(2), excuse, attempt(3), excuse]
    assert count_fruitless_attempts(log) == 1


def test_bands_are_progress_too_but_only_new_ones() -> None:
    decode = [attempt(1), step(1), band(1), attempt(2), band(1), band(2)]
    assert count_fruitless_attempts(decode) == 0
    assert count_fruitless_attempts([*decode, attempt(3), band(1), band(2)]) == 1
