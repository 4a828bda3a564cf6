"""Stages: a tail of every scheduler's steps, the way between two sizes, the band that is kept."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion
from tests.worker.adapters.test_schedulers import SCHEDULERS
from tests.worker.engine.known_answer import KnownAnswer, maker, plain_decoder
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step
from worker.engine.generate import PreparedModel, Progress, StageBegan, generate
from worker.engine.guidance import low_pass
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.scheduler import Scheduler
from worker.engine.start import LowBandPlan, Picture
from worker.engine.stitch import Band

SMALL = DenoisePlan(Plane(12, 16, (True, False)), 16, 0, 4, moving=True, seed=11, outer_shares=(0.2, 0.2))
LARGE = DenoisePlan(Plane(24, 32, (True, False)), 16, 0, 4, moving=True, seed=11, outer_shares=(0.2, 0.2))
FIRST, SECOND = StagePlan(SMALL, 6), StagePlan(LARGE, 3, Picture(3, LowBandPlan()))
CASCADE = GenerationPlan(11, 2, (FIRST, SECOND))


@dataclass
class KnownAnswers:
    """Knows the clean canvas of every size, and begins each stage with a scheduler of its own."""

    name: str
    options: dict[str, object]
    encoder = None
    decoder = plain_decoder()
    device = torch.device("cpu")
    sees_masks = False

    def make_replica(self, stage: StagePlan) -> KnownAnswer:
        return KnownAnswer(answer(*stage.canvas.size), self._scheduler)

    def make_scheduler(self, stage: StagePlan) -> Scheduler:
        return maker(self._scheduler)(stage.steps)

    @property
    def _scheduler(self) -> SchedulerMixin:
        return getattr(diffusers, self.name)(**self.options)


def answer(height: int, width: int) -> Tensor:
    return torch.sin(torch.arange(2 * height * width, dtype=torch.float32)).reshape(2, height, width)


def canvas(events: Iterator[Progress]) -> Tensor:
    """The clean latent."""
    *_, last = (event.checkpoint for event in events if isinstance(event, Step))
    return last.tensors["latent"]


def picture(events: Iterator[Progress] | list[Progress]) -> Tensor:
    return torch.cat([event.rows for event in events if isinstance(event, Band)])


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
@pytest.mark.parametrize("low_band", [None, LowBandPlan()])
def test_a_tail_of_the_schedule_ends_as_near_the_known_answer_as_all_of_it(
    name: str, options: dict[str, object], low_band: LowBandPlan | None
) -> None:
    """Noise of another level than the tail's first step expects would be left over in the picture."""
    ranks, wanted = KnownAnswers(name, options), answer(24, 32)
    flat = canvas(generate(replace(CASCADE, stages=(StagePlan(LARGE, 6),)), ranks))
    tail = canvas(
        generate(replace(CASCADE, stages=(FIRST, replace(SECOND, start=Picture(3, low_band)))), ranks)
    )
    far = (flat - wanted).abs().max()
    # A solver that looks back also remembers what it was guided to.
    assert (tail - wanted).abs().max() < max(1.3 * far, 0.05 if low_band is None else 0.12)


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_a_cascade_resumed_anywhere_equals_never_stopped(name: str, options: dict[str, object]) -> None:
    """Within each stage and between the two; a checkpoint stays right while the picture goes on."""
    events = list(generate(CASCADE, KnownAnswers(name, options)))
    checkpoints = {event.index + 1: event.checkpoint for event in events if isinstance(event, Step)}
    border = [event.before for event in events if isinstance(event, StageBegan)][1]
    for stop in (border - 1, border, border + 1, border + 2):
        checkpoint = checkpoints[stop]
        assert ("reference" in checkpoint.tensors) is (stop > border)
        resumed = picture(generate(CASCADE, KnownAnswers(name, options), checkpoint))
        assert torch.equal(picture(events), resumed)


def checkpoint_after(stop: int, plan: GenerationPlan, prepared: PreparedModel) -> Checkpoint:
    for event in generate(plan, prepared):
        if isinstance(event, Step) and event.index + 1 == stop:
            return event.checkpoint
    raise AssertionError(f"no step {stop}")


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_stages_tell_the_steps_that_their_schedulers_take(name: str, options: dict[str, object]) -> None:
    events = list(generate(CASCADE, KnownAnswers(name, options)))
    stages = [event for event in events if isinstance(event, StageBegan)]
    steps = [event for event in events if isinstance(event, Step)]
    assert [(each.level, each.levels, each.height, each.width) for each in stages] == [
        (1, 2, 12, 16),
        (2, 2, 24, 32),
    ]
    assert [step.index for step in steps] == list(range(len(steps)))
    assert {step.steps for step in steps} == {stage.total for stage in stages} == {len(steps)}
    assert [stage.before for stage in stages] == [0, stages[0].steps]
    assert sum(stage.steps for stage in stages) == len(steps)


@pytest.mark.parametrize(
    ("name", "options"), [each for each in SCHEDULERS if each[0] not in ("PNDMScheduler", "DDPMScheduler")]
)
@pytest.mark.parametrize("wrap", [(False, False), (True, False), (True, True)])
def test_full_guidance_keeps_the_low_band_of_the_stage_before(
    name: str, options: dict[str, object], wrap: tuple[bool, bool]
) -> None:
    """The model wants something else; the lowest waves are the reference's all the same."""
    small, large = (replace(each, canvas=replace(each.canvas, wrap=wrap)) for each in (SMALL, LARGE))
    held = StagePlan(large, 4, Picture(4, LowBandPlan(1.0, 1.0, 0.4)))
    plan = GenerationPlan(11, 2, (replace(FIRST, denoise=small), held))
    if name == "DDIMScheduler":
        options = options | {"clip_sample": False}  # clipped at 1, the reference would be changed too
    *_, last = (
        event.checkpoint for event in generate(plan, KnownAnswers(name, options)) if isinstance(event, Step)
    )
    reference = last.tensors["reference"]
    free = answer(24, 32)
    kept, lost = (
        low_pass(each - reference, 0.1, large.canvas).std() for each in (last.tensors["latent"], free)
    )
    assert kept < 0.1 * lost


@pytest.mark.parametrize("wrap", [(False, False), (True, True)])
def test_a_low_pass_leaves_long_waves_and_drops_short_ones(wrap: tuple[bool, bool]) -> None:
    canvas = Plane(64, 64, wrap)
    phase = (torch.arange(64) + 0.5) * torch.pi
    long, short = ((phase * share).cos().expand(1, 64, 64) for share in (4 / 64, 60 / 64))
    torch.testing.assert_close(low_pass(long, 0.2, canvas), long.contiguous(), rtol=0, atol=0.02)
    assert low_pass(short, 0.2, canvas).abs().max() < 0.02


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    return load_model(str(folder), "cpu").prepare(Conditions("brick wall", guidance_scale=3.0))


def tiny_plan(wrap: bool) -> GenerationPlan:
    """Three stages, the last less than twice as large; the encoder runs on 5 x 4 tiles, sampled."""
    sizes = [(8, 8), (16, 16), (40, 32)]
    grids = [
        DenoisePlan(Plane(*size, (wrap, wrap)), 16, 0, 4, moving=True, seed=5, outer_shares=(0.2, 0.2))
        for size in sizes
    ]
    later = [StagePlan(grid, 1, Picture(1, LowBandPlan()), 2) for grid in grids[1:]]
    return GenerationPlan(5, 4, (StagePlan(grids[0], 2), *later), DecodePlan(tile_size=8))


@pytest.mark.parametrize("wrap", [False, True])
def test_a_real_model_goes_by_way_of_pixels_and_resumes_to_the_same_bytes(
    prepared: PreparedModel, wrap: bool
) -> None:
    assert prepared.encoder is not None
    whole = picture(generate(tiny_plan(wrap), prepared))
    assert whole.float().std() > 0
    for stop in (1, 2, 3):
        checkpoint = checkpoint_after(stop, tiny_plan(wrap), prepared)
        assert torch.equal(picture(generate(tiny_plan(wrap), prepared, checkpoint)), whole)


def test_bytes_of_a_cascade_do_not_depend_on_how_it_is_shared_out(prepared: PreparedModel) -> None:
    alone = picture(generate(tiny_plan(False), prepared))
    with ThreadPoolExecutor(3) as pool:
        together = pool.map(
            lambda group: picture(generate(tiny_plan(False), prepared, group=group)), thread_groups(3)
        )
        assert all(torch.equal(alone, each) for each in together)
