"""What tiles may see of the canvas beside themselves, and how that reaches them in the loop."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.known_answer import Untiled, plain_decoder
from worker.adapters.toy import FlowEulerScheduler
from worker.engine.attention import AttentionPlan, Clock, Views, average, measure_left_noise
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Checkpoint, Step, TilePredicted
from worker.engine.ensemble import Batch
from worker.engine.generate import generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, GenerationPlan, StagePlan

CANVAS = Plane(24, 32, (False, True))
PLAN = AttentionPlan((8, 8), 0.5)


@dataclass(frozen=True, slots=True)
class Follower:
    """Wants its tile to be as bright as the conductor is on average, and half of what is around it."""

    branches = 1

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]

    def predict(self, batch: Batch) -> Tensor:
        context = batch.context
        if context is None:
            return batch.crops
        around = [view.crop.mean() / 2 for view in context.neighbourhoods] or [torch.zeros(())]
        wanted = torch.stack([context.conductor.crop.mean() + each for each in around]) * context.strength
        return batch.crops - wanted.view(-1, 1, 1, 1)


def plan_picture(
    attention: AttentionPlan | None, canvas: Plane = CANVAS, tile_size: int = 8
) -> GenerationPlan:
    denoise = DenoisePlan(canvas, tile_size, 0, 2, moving=True, seed=3, attention=attention)
    return GenerationPlan(3, 2, (StagePlan(denoise, 4, modules=2),))


def run(plan: GenerationPlan, resume: Checkpoint | None = None) -> list[Checkpoint]:
    prepared = Untiled(Follower(), FlowEulerScheduler, plain_decoder())
    return [event.checkpoint for event in generate(plan, prepared, resume) if isinstance(event, Step)]


def end(plan: GenerationPlan, resume: Checkpoint | None = None) -> Tensor:
    return run(plan, resume)[-1].tensors["latent"]


@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 4), st.integers(1, 4))
def test_what_averaging_leaves_of_white_noise(height: int, width: int, rows: int, columns: int) -> None:
    noise = torch.randn(500, height, width, generator=torch.Generator().manual_seed(height * width))
    left = average(noise, (rows, columns)).square().mean().sqrt()
    assert float(left) == pytest.approx(measure_left_noise((height, width), (rows, columns)), rel=0.1)


def test_averaging_two_by_two_halves_the_noise() -> None:
    assert measure_left_noise((16, 32), (8, 16)) == 0.5
    assert measure_left_noise((16, 16), (16, 16)) == 1.0


@given(
    st.integers(4, 40), st.integers(4, 40), st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 39), st.integers(0, 39), st.integers(1, 20),
)  # fmt: skip
def test_a_neighbourhood_holds_its_tile_and_has_one_size(
    height: int, width: int, wrap: tuple[bool, bool], top: int, left: int, side: int
) -> None:
    canvas = Plane(height, width, wrap)
    extent = min(side, height), min(side, width)
    starts = [
        start % length if wraps else min(start, length - size)
        for start, length, size, wraps in zip((top, left), canvas.size, extent, wrap, strict=True)
    ]
    tile = Rectangle(*starts, *extent)
    around = PLAN.find_neighbourhood(canvas, tile)
    assert (around.area.height, around.area.width) == (min(2 * extent[0], height), min(2 * extent[1], width))
    assert around.size == (max(around.area.height // 2, 1), max(around.area.width // 2, 1))
    places = torch.zeros(canvas.size, dtype=torch.bool)
    for piece, _ in canvas.pieces(around.area):
        piece.slice(places).fill_(True)
    assert all(bool(piece.slice(places).all()) for piece, _ in canvas.pieces(tile))


def test_views_are_averages_that_are_told_their_own_clock() -> None:
    latent = initial_noise(1, 2, *CANVAS.size)
    shares: list[float] = []

    def match(share: float) -> Clock:
        shares.append(share)
        return Clock(10.0, torch.tensor(share))

    tile = Rectangle(8, 28, 8, 8)
    context = Views(latent, CANVAS, replace(PLAN, neighbours=True), match).of([tile, tile])
    mean = latent.unflatten(1, (8, 3)).unflatten(3, (8, 4)).mean((2, 4))
    torch.testing.assert_close(context.conductor.crop, mean * 10)
    assert float(context.conductor.timestep) == pytest.approx(1 / 12**0.5)
    rolled = latent.roll((-4, -24), (1, 2))[:, :16, :16]
    for view in context.neighbourhoods:
        torch.testing.assert_close(
            view.crop, rolled.unflatten(1, (8, 2)).unflatten(3, (8, 2)).mean((2, 4)) * 10
        )
        assert view.area == Rectangle(4, 24, 16, 16)
    assert shares == pytest.approx([1 / 12**0.5, 0.5, 0.5])


@pytest.mark.parametrize("neighbours", [False, True])
def test_every_tile_moves_when_any_other_does_and_with_attention_off_none(neighbours: bool) -> None:
    """In both directions: whichever tile is changed."""
    attention = AttentionPlan((8, 8), 0.5, neighbours=neighbours)
    for plan, influences in ((plan_picture(attention), True), (plan_picture(None), False)):
        first, *_ = run(plan)
        plain = _predict_all(plan, first)
        for place in (slice(0, 8), slice(16, 24)):
            latent = first.tensors["latent"].clone()
            latent[:, place, :8] += 1
            changed = _predict_all(plan, Checkpoint(1, first.tensors | {"latent": latent}, {}))
            others = [
                tile for tile in plain if tile.left >= 8 and not place.start - 8 < tile.top < place.stop
            ]
            assert others
            assert all(torch.equal(plain[tile], changed[tile]) != influences for tile in others)


def _predict_all(plan: GenerationPlan, resume: Checkpoint) -> dict[Rectangle, Tensor]:
    """The clean estimates of the step after a checkpoint."""
    prepared = Untiled(Follower(), FlowEulerScheduler, plain_decoder())
    predicted: dict[Rectangle, Tensor] = {}
    for event in generate(plan, prepared, resume):
        if isinstance(event, TilePredicted):
            predicted[event.tile] = event.clean
        if isinstance(event, Step):
            return predicted
    raise AssertionError("no step was left")


def test_a_canvas_of_one_tile_is_unchanged() -> None:
    alone = Plane(8, 8)
    assert torch.equal(end(plan_picture(PLAN, alone)), end(plan_picture(None, alone)))
    assert not torch.equal(end(plan_picture(PLAN)), end(plan_picture(None)))


def test_only_the_first_share_of_the_steps_attends() -> None:
    half = [replace(PLAN, share=0.5).applies_at(step, 5) for step in range(5)]
    assert half == [True, True, True, False, False]
    none, whole, early = (run(plan_picture(each)) for each in (None, PLAN, replace(PLAN, share=0.25)))
    assert torch.equal(early[0].tensors["latent"], whole[0].tensors["latent"])
    assert not torch.equal(early[0].tensors["latent"], none[0].tensors["latent"])
    assert not torch.equal(early[1].tensors["latent"], whole[1].tensors["latent"])


@pytest.mark.parametrize("neighbours", [False, True])
def test_a_job_goes_on_from_a_checkpoint_to_the_same_bytes(neighbours: bool) -> None:
    plan = plan_picture(replace(PLAN, neighbours=neighbours))
    whole = run(plan)
    assert torch.equal(end(plan, whole[1]), whole[-1].tensors["latent"])
