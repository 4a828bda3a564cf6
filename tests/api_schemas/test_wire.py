"""What service and worker write for each other.

Logs: whatever writers do, the stored state is the fold of the stored log. Binary messages: packing loses
nothing, and what is cut short is refused.
"""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from api_schemas.errors import JobError
from api_schemas.events import (
    BandFinished,
    BandFinishedData,
    CanceledData,
    DelayedData,
    FailedData,
    JobCanceled,
    JobDelayed,
    JobFailed,
    JobPreempted,
    JobResumed,
    JobStarted,
    PhaseStarted,
    PhaseStartedData,
    PreemptedData,
    ResumedData,
    StartedData,
    StepCompleted,
    StepCompletedData,
    TilePreviewed,
    TilePreviewedData,
    durable_event,
)
from api_schemas.job import TERMINAL, Progress, fold
from api_schemas.preview_frames import pack_batch, pack_preview, unpack_batch, unpack_preview
from api_schemas.wire import LIVE_KEY
from tests.story import Story

_ids = (f"job{number}" for number in itertools.count())
_data = {
    JobStarted: StartedData(worker="w", execution="one"),
    JobResumed: ResumedData(worker="w", execution="one", step=3),
    PhaseStarted: PhaseStartedData(phase="decode", total=8),
    StepCompleted: StepCompletedData(step=4, steps=12, tiles=9, eta_s=None),
    BandFinished: BandFinishedData(top_px=0, height_px=64, bands_done=1, bands=8, eta_s=1.5),
    JobDelayed: DelayedData(reason="the store is away", retry_in_s=2.0),
    JobPreempted: PreemptedData(step=4, reason="shutdown"),
    JobFailed: FailedData(error=JobError(code="engine_failed", message="m", retryable=True)),
    JobCanceled: CanceledData(reason="by hand"),
}
kinds = st.lists(
    st.tuples(st.sampled_from(list(_data)), st.integers(0, 5), st.floats(0, 2e9, allow_nan=False)),
    max_size=12,
)


@given(kinds)
@settings(max_examples=60, deadline=None)
def test_the_stored_state_is_the_fold_of_the_log(valkey: str, history: list) -> None:
    with Redis.from_url(valkey) as redis:
        story, job_id = Story(redis), next(_ids)
        story.queue(job_id)
        for kind, attempt, ts in history:
            if story.job(job_id).status in TERMINAL:
                break  # no writer appends to a job that has ended
            event = kind(job_id=job_id, attempt=attempt, ts=ts, data=_data[kind])
            story.append(event, install="one")
            assert fold(story.log(job_id)) == story.job(job_id)


def test_writers_that_race_lose_no_event(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        stories = [Story(redis) for _ in range(4)]
        stories[0].queue("job")
        stories[0].start("job")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: stories[n % 4].step("job", n), range(40)))
        log = stories[0].log("job")
        assert sorted(event.data.step for event in log[2:]) == list(range(40))
        assert fold(log) == stories[0].job("job")
        assert sum(story.stale for story in stories) > 0  # they did meet


def test_an_older_execution_is_fenced_and_changes_nothing(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        old, new = Story(redis, "old"), Story(redis, "new")
        old.queue("job")
        old.start("job")
        new.start("job", attempt=2)
        before = new.job("job"), new.log("job")
        event = StepCompleted(job_id="job", attempt=1, ts=time.time(), data=_data[StepCompleted])
        assert old.try_append(event) == "fenced"
        assert (new.job("job"), new.log("job")) == before


def test_live_entries_name_the_event_before(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        story = Story(redis)
        story.queue("job")
        story.start("job")
        for step in range(5):
            story.step("job", step)
        seqs = [event.seq for event in story.log("job")]
        live = [fields for _, fields in redis.xrange(LIVE_KEY)]
        assert [fields[b"seq"].decode() for fields in live] == seqs
        assert [fields[b"prev"].decode() for fields in live] == ["", *seqs[:-1]]


cells = st.builds(
    TilePreviewedData,
    left_px=st.integers(0, 16_384),
    top_px=st.integers(0, 16_384),
    width_px=st.integers(1, 512),
    height_px=st.integers(1, 512),
    phase=st.sampled_from(["denoise", "decode"]),
    step=st.integers(0, 200),
)
events = st.builds(
    TilePreviewed, job_id=st.text(max_size=30), attempt=st.integers(0, 9), ts=st.just(1.5), data=cells
)
previews = st.tuples(events, st.binary(max_size=200))


@given(st.lists(previews, min_size=1, max_size=8))
def test_a_batch_gives_back_its_previews(contents: list[tuple[TilePreviewed, bytes]]) -> None:
    message = pack_batch([pack_preview(event, image) for event, image in contents])
    assert [unpack_preview(frame) for frame in unpack_batch(message)] == contents


@given(st.lists(previews, min_size=2, max_size=4), st.data())
def test_a_batch_that_is_cut_short_is_refused(contents: list, data: st.DataObject) -> None:
    frames = [pack_preview(event, image) for event, image in contents]
    message = pack_batch(frames)
    # A cut between two frames gives a shorter batch, which only its transport could notice.
    borders = {4 + sum(4 + len(frame) for frame in frames[:count]) for count in range(len(frames) + 1)}
    cut = data.draw(st.integers(5, len(message) - 1).filter(lambda at: at not in borders))
    with pytest.raises(ValueError, match=r"bytes|cut short"):
        unpack_batch(message[:cut])


def test_what_was_stored_before_phases_had_their_name_is_read() -> None:
    data = {"stage": "denoise", "total": 9, "level": 2, "levels": 2}
    event = {"job_id": "a", "attempt": 1, "ts": 1.5, "type": "stage.started", "data": data}
    found = durable_event.validate_json(json.dumps(event))
    assert isinstance(found, PhaseStarted)
    assert (found.type, found.data.phase, found.data.level) == ("phase.started", "denoise", 2)
    assert json.loads(found.model_dump_json())["data"]["phase"] == "denoise"
    progress = Progress.model_validate_json('{"stage": "decode", "done": 3, "total": 4}')
    assert (progress.phase, progress.done) == ("decode", 3)
