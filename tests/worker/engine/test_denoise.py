"""The loop against diffusers' own, stopped and resumed anywhere, and what it says of a broken step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from tests.worker.engine.known_answer import KnownAnswer, finish, maker
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Span, Step, TilePredicted, denoise
from worker.engine.ensemble import Batch, Ensemble
from worker.engine.errors import NonFiniteLatentError
from worker.engine.plan import DenoisePlan
from worker.engine.scheduler import Scheduler
from worker.engine.warned import Warned

STEPS = 6
CANVAS = Plane(16, 24)
WHOLE = DenoisePlan(CANVAS, 24, 0, 0, moving=False, seed=5)
TILED = DenoisePlan(Plane(16, 24, (False, True)), 8, 2, 4, moving=True, seed=5, outer_shares=(0.2, 0.2))
LATENT = torch.randn(4, *CANVAS.size, generator=torch.Generator().manual_seed(2))
# Of first and second order, of several steps, with noise of its own, and of a flow.
SCHEDULERS = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("PNDMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {}),
]


@dataclass
class Pointwise:
    """A model without a convolution: what it predicts of a pixel follows from that pixel and the timestep."""

    predicted: int = 0

    branches = 1

    def predict(self, batch: Batch) -> Tensor:
        self.predicted += len(batch.queries)
        return predict(batch.crops, batch.timesteps[:, None, None, None])

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]


def predict(latent: Tensor, timestep: Tensor) -> Tensor:
    return (latent * 0.9 + timestep / 2000).tanh()


def make(name: str, options: dict[str, object]) -> SchedulerMixin:
    return getattr(diffusers, name)(**options)


def start(
    scheduler: Scheduler,
    plan: DenoisePlan = TILED,
    replica: object = None,
    span: Span | None = None,
    generator: torch.Generator | None = None,
    resume: Checkpoint | None = None,
) -> Iterator[TilePredicted | Step | Warned]:
    """The loop, from noise or from a checkpoint on."""
    generator = generator or torch.Generator().manual_seed(9)
    latent, first_step = LATENT * scheduler.initial_scale, 0
    if resume is not None:
        generator.set_state(resume.tensors["generator"])
        remembered = {name.removeprefix("scheduler."): each for name, each in resume.tensors.items()}
        scheduler.restore(
            {name: each for name, each in remembered.items() if name not in ("latent", "generator")},
            resume.scalars,
        )
        latent, first_step = resume.tensors["latent"], resume.step
    ensemble = Ensemble(replica or Pointwise(), plan.canvas, 3)
    return denoise(latent, plan, ensemble, scheduler, generator, first_step, span or Span())


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_one_tile_as_large_as_the_canvas_is_diffusers_own_loop(name: str, options: dict[str, object]) -> None:
    scheduler, generator = make(name, options), torch.Generator().manual_seed(9)
    scheduler.set_timesteps(STEPS)
    latent = LATENT[None] * getattr(scheduler, "init_noise_sigma", 1.0)
    arguments = {} if "generator" not in scheduler.step.__code__.co_varnames else {"generator": generator}
    for timestep in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda latent, _: latent)
        prediction = predict(scale(latent, timestep), timestep)
        latent = scheduler.step(prediction, timestep, latent, **arguments).prev_sample
    ours = finish(start(maker(make(name, options))(STEPS), WHOLE))
    # A prediction is multiplied by its tile's weights and divided by them.
    torch.testing.assert_close(ours, latent[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_tiles_of_a_pointwise_model_make_the_same_canvas_as_one(
    name: str, options: dict[str, object]
) -> None:
    tiled, whole = (finish(start(maker(make(name, options))(STEPS), plan)) for plan in (TILED, WHOLE))
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_resumed_after_any_step_ends_in_the_same_bytes(name: str, options: dict[str, object]) -> None:
    """Also from a checkpoint that was taken long before the loop went on."""
    schedule = maker(make(name, options))
    events = list(start(schedule(STEPS)))
    checkpoints = [event.checkpoint for event in events if isinstance(event, Step)]
    assert [each.step for each in checkpoints] == list(range(1, len(checkpoints) + 1))
    assert len(checkpoints) >= STEPS
    for checkpoint in checkpoints[:-1]:
        *_, last = start(schedule(STEPS), resume=checkpoint)
        assert isinstance(last, Step)
        assert torch.equal(last.checkpoint.tensors["latent"], checkpoints[-1].tensors["latent"])


def test_a_checkpoint_of_the_last_step_leaves_nothing_to_do() -> None:
    schedule = maker(make("EulerDiscreteScheduler", {}))
    *_, last = start(schedule(STEPS))
    assert isinstance(last, Step)
    assert list(start(schedule(STEPS), resume=last.checkpoint)) == []


def test_the_loop_does_not_write_to_the_canvas_that_it_is_given() -> None:
    scheduler = maker(make("DPMSolverMultistepScheduler", {}))(STEPS)
    latent = LATENT.clone()
    ensemble = Ensemble(Pointwise(), TILED.canvas, 3)
    finish(denoise(latent, TILED, ensemble, scheduler, torch.Generator()))
    assert torch.equal(latent, LATENT)


def test_each_step_tells_its_tiles_in_the_order_of_its_grid() -> None:
    """Counted over all stages: four steps came before, of twelve."""
    scheduler = maker(make("EulerDiscreteScheduler", {}))(STEPS)
    events = list(start(scheduler, span=Span(before=4, total=12)))
    for index, (number, group) in enumerate(groupby(events, key=lambda event: event.index)):
        *tiles, step = group
        assert number == index + 4
        assert [each.tile for each in tiles] == list(TILED.grid_at(index, STEPS).tiles)
        assert isinstance(step, Step)
        assert (step.steps, step.tiles, step.checkpoint.step) == (12, len(tiles), number + 1)
    assert events[-1].index == 4 + STEPS - 1


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_the_clean_estimate_is_what_the_model_means(name: str, options: dict[str, object]) -> None:
    """A model that knows the picture says it at every step, of every tile, in whichever parametrisation."""
    answer = torch.randn(4, *CANVAS.size, generator=torch.Generator().manual_seed(4)).clamp(-1, 1)
    own = make(name, options)
    plan = replace(TILED, canvas=CANVAS)
    for event in start(maker(own)(STEPS), plan, KnownAnswer(answer, own)):
        if isinstance(event, TilePredicted):
            wanted = CANVAS.gather(answer, event.tile)
            torch.testing.assert_close(event.clean, wanted, rtol=0, atol=0.02)


def test_a_loop_that_is_closed_predicts_nothing_more() -> None:
    replica = Pointwise()
    loop = start(maker(make("EulerDiscreteScheduler", {}))(STEPS), replica=replica)
    first = next(loop)
    assert isinstance(first, TilePredicted)
    assert replica.predicted == 3
    loop.close()
    assert replica.predicted == 3
    assert list(loop) == []


class Broken(Pointwise):
    """Predicts one bad value in the tiles that hold a place, from some timestep down."""

    def __init__(self, bad: float, below: float) -> None:
        super().__init__()
        self._bad, self._below = bad, below

    def predict(self, batch: Batch) -> Tensor:
        predictions = super().predict(batch)
        for prediction, tile, timestep in zip(predictions, batch.tiles, batch.timesteps, strict=True):
            if timestep < self._below and (tile.top, tile.left) == (8, 16):
                prediction[2, 3, 4] = self._bad
        return predictions


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_broken_step_is_named_with_its_timestep_and_tile(bad: float, step: int) -> None:
    scheduler = maker(make("DDIMScheduler", {"clip_sample": False}))(STEPS)
    timestep = float(scheduler.timesteps[step - 1])
    plan = replace(TILED, canvas=CANVAS, moving=False, overlap=0, outer_overlap=0)
    loop = start(scheduler, plan, Broken(bad, timestep + 1), Span(before=2, total=20))
    place = r"rows 8 to 16, columns 16 to 24 of the latent"
    message = rf"step {step + 2} of 20, timestep {timestep:g}: tile 6 of 6 \({place}\) is not finite"
    events: list[object] = []
    with pytest.raises(NonFiniteLatentError, match=message):
        events.extend(loop)
    steps = [event for event in events if isinstance(event, Step)]
    assert len(steps) == step - 1, "a broken canvas is no step"


class Breaking:
    """A scheduler whose every step is too large, and otherwise diffusers'."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> object:
        return getattr(self._scheduler, name)

    def step(self, prediction: Tensor, index: int, latent: Tensor, generator: torch.Generator) -> Tensor:
        return self._scheduler.step(prediction, index, latent, generator) * torch.inf


def test_a_step_that_the_scheduler_breaks_is_not_blamed_on_a_tile() -> None:
    scheduler = Breaking(maker(make("EulerDiscreteScheduler", {}))(STEPS))
    with pytest.raises(NonFiniteLatentError, match="all tiles are finite, the scheduler's step is not"):
        list(start(scheduler))


def test_a_lack_of_memory_is_told_once_within_its_step() -> None:
    class Narrow(Pointwise):
        def predict(self, batch: Batch) -> Tensor:
            if len(batch.queries) > 1:
                raise torch.OutOfMemoryError("no memory")
            return super().predict(batch)

    schedule = maker(make("EulerDiscreteScheduler", {}))
    events = list(start(schedule(STEPS), replica=Narrow()))
    warnings = [place for place, event in enumerate(events) if isinstance(event, Warned)]
    first_step = next(place for place, event in enumerate(events) if isinstance(event, Step))
    assert warnings == [first_step - 1]
    assert torch.equal(events[-1].checkpoint.tensors["latent"], finish(start(schedule(STEPS))))
