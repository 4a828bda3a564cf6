"""The bar goes forward, whatever happens to the job."""

from hypothesis import given
from hypothesis import strategies as st

from api_schemas.catalog import Cost
from api_schemas.events import (
    BandFinished,
    BandFinishedData,
    DurableEvent,
    JobQueued,
    JobResumed,
    QueuedData,
    ResumedData,
    StageStarted,
    StageStartedData,
    StepCompleted,
    StepCompletedData,
)
from api_schemas.generation import ResolvedRequest
from chorale.progress import JobProgress

STEPS = 10
TILES = 4


def queued() -> JobQueued:
    request = ResolvedRequest(model="m", steps=STEPS, guidance_scale=1.0, seed=1)
    cost = Cost(tiles=STEPS * TILES, megapixel_steps=1, vram_gib=1)
    return JobQueued(job_id="j", attempt=0, ts=0, data=QueuedData(request=request, cost=cost))


def step(number: int) -> StepCompleted:
    data = StepCompletedData(step=number, steps=STEPS, tiles=TILES, eta_s=1.0)
    return StepCompleted(job_id="j", attempt=1, ts=0, data=data)


def band(number: int) -> BandFinished:
    data = BandFinishedData(top_px=0, height_px=8, bands_done=number, bands=5, eta_s=0.5)
    return BandFinished(job_id="j", attempt=1, ts=0, data=data)


def resumed(at: int) -> JobResumed:
    data = ResumedData(worker="w", execution="e", step=at)
    return JobResumed(job_id="j", attempt=2, ts=0, data=data)


anything = st.one_of(
    st.builds(step, st.integers(1, STEPS)),
    st.builds(band, st.integers(0, 5)),
    st.builds(resumed, st.integers(0, STEPS)),
    st.just(StageStarted(job_id="j", attempt=1, ts=0, data=StageStartedData(stage="decode", total=5))),
)


@given(st.lists(anything))
def test_the_bar_never_goes_back(events: list[DurableEvent]) -> None:
    progress = JobProgress()
    progress.note(queued())
    fractions = [0.0]
    for event in events:
        progress.note(event)
        fractions.append(progress.fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1
    assert progress.tiles <= progress.tiles_expected


def test_steps_that_are_sung_again_after_a_kill_are_counted_once() -> None:
    progress = JobProgress()
    for event in (queued(), step(1), step(2), step(3), resumed(1), step(2), step(3), step(4)):
        progress.note(event)
    assert (progress.step, progress.tiles) == (4, 4 * TILES)
