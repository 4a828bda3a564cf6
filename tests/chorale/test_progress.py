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
    JobSucceeded,
    PhaseStarted,
    PhaseStartedData,
    QueuedData,
    ResumedData,
    StepCompleted,
    StepCompletedData,
    SucceededData,
    TilePreviewedData,
)
from api_schemas.generation import ResolvedRequest
from chorale.progress import JobProgress
from tests.service.tenants import RESULT

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


def cell(number: int, step: int, left_px: int) -> TilePreviewedData:
    return TilePreviewedData(
        left_px=left_px, top_px=number * 512, width_px=512, height_px=512, phase="denoise", step=step
    )


anything = st.one_of(
    st.builds(cell, st.integers(0, 1), st.integers(1, STEPS), st.sampled_from((0, 512))),
    st.builds(step, st.integers(1, STEPS)),
    st.builds(band, st.integers(0, 5)),
    st.builds(resumed, st.integers(0, STEPS)),
    st.just(PhaseStarted(job_id="j", attempt=1, ts=0, data=PhaseStartedData(phase="decode", total=5))),
)


@given(st.lists(anything))
def test_the_bar_never_goes_back(events: list[DurableEvent | TilePreviewedData]) -> None:
    progress = JobProgress()
    progress.apply(queued())
    fractions = [0.0]
    for event in events:
        if isinstance(event, TilePreviewedData):
            progress.glimpse(event)
        else:
            progress.apply(event)
        fractions.append(progress.fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1
    assert progress.tiles <= progress.tiles_expected


def test_steps_that_are_run_again_after_a_kill_are_counted_once() -> None:
    progress = JobProgress()
    for event in (queued(), step(1), step(2), step(3), resumed(1), step(2), step(3), step(4)):
        progress.apply(event)
    assert (progress.step, progress.tiles) == (4, 4 * TILES)


def test_at_the_end_there_are_as_many_tiles_as_there_were() -> None:
    """How many a moving grid needs was an estimate."""
    progress = JobProgress()
    for event in (queued(), step(1)):
        progress.apply(event)
    assert progress.tiles_expected > TILES
    progress.apply(JobSucceeded(job_id="j", attempt=1, ts=0, data=SucceededData(result=RESULT)))
    assert (progress.tiles, progress.tiles_expected) == (TILES, TILES)


def test_a_step_is_shown_while_it_runs() -> None:
    progress = JobProgress()
    progress.apply(queued())
    progress.apply(step(1))
    after_one = progress.fraction
    for _ in range(2):  # the same cell again is no more
        progress.glimpse(cell(0, 2, 0))
    assert progress.within_step == 0.25
    progress.glimpse(cell(1, 1, 0))  # of a step that is over
    assert progress.within_step == 0.25
    for number, left_px in ((1, 0), (0, 512), (1, 512)):
        progress.glimpse(cell(number, 2, left_px))
    done = progress.fraction
    assert progress.within_step == 1.0
    progress.apply(step(2))
    assert progress.within_step == 0.0
    assert after_one < done == progress.fraction


def test_a_cascade_is_one_bar_that_names_its_canvases() -> None:
    progress = JobProgress()
    progress.apply(queued())
    for level, done in ((1, 0), (2, 6)):
        data = PhaseStartedData(phase="denoise", total=STEPS, done=done, level=level, levels=2)
        progress.apply(PhaseStarted(job_id="j", attempt=1, ts=0, data=data))
        assert progress.label == f"denoising {level}/2"
        assert progress.fraction == 0.88 * done / STEPS
