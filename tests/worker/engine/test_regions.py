"""Prompts of regions: which tiles they are predicted for, and what becomes of it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.known_answer import Untiled, maker, plain_decoder
from tests.worker.engine.test_denoise import make
from tests.worker.engine.test_fuse import fuse
from tests.worker.engine.test_grid import grids
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.model import Conditions, Prompt
from worker.adapters.toy import CHANNELS, Toy
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Step
from worker.engine.ensemble import Batch, Ensemble, Query
from worker.engine.generate import FinalState, PreparedModel, generate
from worker.engine.grid import TileGrid
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.regions import Regions
from worker.engine.start import LowBandPlan, Picture

CANVAS = Plane(32, 48)


def normalize(weights: Tensor) -> Tensor:
    return weights / weights.sum(0)


def cover(canvas: Plane, top: int, bottom: int, soft: int = 0) -> Regions:
    """One region: rows from `top` to `bottom`, with a soft border of so many rows outside."""
    mask = torch.zeros(canvas.size)
    mask[max(top - soft, 0) : bottom + soft] = 0.25
    mask[top:bottom] = 1
    return Regions.lay(torch.stack([1 - mask, mask]), (None, None), canvas)


@st.composite
def regions_on(draw: st.DrawFn, canvas: Plane) -> Regions:
    """Rectangles anywhere, whose weights add up to one with what is left."""
    weights = torch.zeros(1 + draw(st.integers(1, 4)), *canvas.size)
    for mask in weights[1:]:
        top, left = draw(st.integers(0, canvas.height)), draw(st.integers(0, canvas.width))
        mask[top : top + draw(st.integers(1, 9)), left : left + draw(st.integers(1, 9))] = draw(
            st.floats(0.125, 2)
        )
    weights[0] = (1 - weights[1:].sum(0)).clamp(min=0)
    return Regions.lay(normalize(weights), (None,) * len(weights), canvas)


@given(st.data(), grids())
def test_a_tile_is_predicted_under_the_prompts_that_count_in_it(data: st.DataObject, grid: TileGrid) -> None:
    regions = data.draw(regions_on(grid.canvas))
    for tile in grid.tiles:
        rows = [(tile.top + row) % grid.canvas.height for row in range(tile.height)]
        columns = [(tile.left + column) % grid.canvas.width for column in range(tile.width)]
        own = regions.weights[:, rows][:, :, columns]
        assert regions.find_prompts(tile) == [
            prompt for prompt, weights in enumerate(own) if weights.max() > 0
        ]


@given(st.data(), grids())
def test_blended_tiles_fuse_to_what_masked_predictions_fuse_to(data: st.DataObject, grid: TileGrid) -> None:
    """Each prediction of a tile under its own mask, all in one weighted mean."""
    regions = data.draw(regions_on(grid.canvas))
    asked = [(tile, regions.find_prompts(tile)) for tile in grid.tiles]
    predictions = [[torch.randn(2, tile.height, tile.width) for _ in prompts] for tile, prompts in asked]
    blended = [
        regions.blend(tile, prompts, own) for (tile, prompts), own in zip(asked, predictions, strict=True)
    ]
    tiles = [(tile, prompt) for tile, prompts in asked for prompt in prompts]
    masked = TileGrid(grid.canvas, tuple(tile for tile, _ in tiles))
    masks = [grid.canvas.gather(regions.weights[prompt], tile) for tile, prompt in tiles]
    flat = [each for own in predictions for each in own]
    torch.testing.assert_close(fuse(grid, blended), fuse(masked, flat, masks), rtol=1e-4, atol=1e-5)


def test_a_seed_of_its_own_is_the_regions_noise_and_no_one_elses() -> None:
    def draw(seed: int) -> Tensor:
        return initial_noise(seed, CHANNELS, *CANVAS.size)

    soft = cover(CANVAS, 8, 20, soft=4)
    regions = replace(soft, seeds=(None, 77))
    mixed = regions.mix_noise(draw(5), draw)
    assert torch.equal(mixed[:, 8:20], draw(77)[:, 8:20])
    assert torch.equal(mixed[:, :8], draw(5)[:, :8])
    assert torch.equal(mixed[:, 20:], draw(5)[:, 20:])
    assert torch.equal(soft.mix_noise(draw(5), draw), draw(5))


@dataclass
class Constant:
    """Predicts its prompt's number everywhere, and keeps what it was asked."""

    branches: int = 2
    asked: list[Query] = field(default_factory=list)

    def predict(self, batch: Batch) -> Tensor:
        self.asked += batch.queries
        numbers = [float(10 * query.prompt + query.branch) for query in batch.queries]
        return torch.tensor(numbers)[:, None, None, None].expand_as(batch.crops).clone()

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0] + 3 * (predictions[-1] - predictions[0])


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("modules", [1, 3])
@pytest.mark.parametrize("even", [True, False])
def test_every_branch_of_every_prompt_that_crosses_a_tile_is_asked_once(
    ranks: int, modules: int, even: bool
) -> None:
    """Guidance of each prompt by itself: its first branch plus three times the difference."""
    regions = cover(CANVAS, 8, 20)
    tiles = TileGrid.lay(CANVAS, tile_size=16).tiles
    replicas, latent = [Constant() for _ in range(ranks)], torch.zeros(1, *CANVAS.size)

    def predict(replica: Constant, group: Group) -> list[tuple[Rectangle, Tensor]]:
        ensemble = Ensemble(replica, CANVAS, modules, group, even=even, regions=regions)
        return list(ensemble.predict(latent, torch.tensor(5.0), tiles))

    with ThreadPoolExecutor(ranks) as pool:
        answers = list(pool.map(predict, replicas, thread_groups(ranks)))
    wanted = {Query(tile, branch, prompt) for tile in tiles for branch in range(2) for prompt in range(2)}
    assert {query for replica in replicas for query in replica.asked} == wanted
    for answer in answers:
        assert [tile for tile, _ in answer] == list(tiles)
        for tile, prediction in answer:
            expected = 3 + 10 * CANVAS.gather(regions.weights[1], tile)
            torch.testing.assert_close(prediction[0], expected, rtol=0, atol=1e-6)


def test_a_tile_without_background_needs_none() -> None:
    regions, replica = cover(CANVAS, 0, 16), Constant(branches=1)
    tiles = TileGrid.lay(CANVAS, tile_size=16).tiles
    list(
        Ensemble(replica, CANVAS, 1, regions=regions).predict(
            torch.zeros(1, 32, 48), torch.tensor(5.0), tiles
        )
    )
    assert [(query.tile.top, query.prompt) for query in replica.asked] == [(0, 1)] * 3 + [(16, 0)] * 3


def plan(
    regions: Sequence[Regions | None], *, wrap: bool = False, moving: bool = True, overlap: int = 2
) -> GenerationPlan:
    """Stages of the regions' canvases; the second continues the first's picture under its low band."""
    canvases = [Plane(16, 24, (wrap, wrap)), Plane(32, 48, (wrap, wrap))][-len(regions) :]
    stages = [
        StagePlan(DenoisePlan(canvas, 8, overlap, overlap, moving, seed=3, regions=each), 4, modules=2)
        for canvas, each in zip(canvases, regions, strict=True)
    ]
    if len(stages) == 2:
        stages[1] = replace(stages[1], steps=2, start=Picture(2, LowBandPlan()))
    return GenerationPlan(3, CHANNELS, tuple(stages), DecodePlan(tile_size=16))


def finish(plan: GenerationPlan, prepared: PreparedModel, group: Group | None = None) -> Tensor:
    (latent,) = (
        event.latent for event in generate(plan, prepared, group=group) if isinstance(event, FinalState)
    )
    return latent


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("levels", [1, 2])
def test_a_region_that_covers_all_equals_the_plain_prompt(wrap: bool, moving: bool, levels: int) -> None:
    canvases = [Plane(16, 24, (wrap, wrap)), Plane(32, 48, (wrap, wrap))][-levels:]
    everywhere = [cover(canvas, 0, canvas.height) for canvas in canvases]
    told = Conditions("tide", regions=(Prompt("dunes"),))
    covered = finish(plan(everywhere, wrap=wrap, moving=moving), Toy().prepare(told))
    plain = plan([None] * levels, wrap=wrap, moving=moving)
    assert torch.equal(covered, finish(plain, Toy().prepare(Conditions("dunes"))))
    assert not torch.equal(covered, finish(plain, Toy().prepare(Conditions("tide"))))


@pytest.mark.parametrize("wrap", [True, False])
def test_a_pointwise_model_paints_each_prompt_within_its_mask_alone(wrap: bool) -> None:
    canvas = Plane(32, 48, (wrap, wrap))
    asked = plan([cover(canvas, 8, 20, soft=3)], wrap=wrap)
    latent = finish(asked, Toy().prepare(Conditions("tide", regions=(Prompt("dunes"),))))
    tide, dunes = (
        finish(plan([None], wrap=wrap), Toy().prepare(Conditions(each))) for each in ("tide", "dunes")
    )
    torch.testing.assert_close(latent[:, 8:20], dunes[:, 8:20], rtol=0, atol=1e-4)
    torch.testing.assert_close(latent[:, :5], tide[:, :5], rtol=0, atol=1e-4)
    torch.testing.assert_close(latent[:, 23:], tide[:, 23:], rtol=0, atol=1e-4)
    mixed = 0.75 * tide[:, 5:8] + 0.25 * dunes[:, 5:8]
    torch.testing.assert_close(latent[:, 5:8], mixed, rtol=0, atol=1e-4)


class Blurred:
    """Mixes all of its crop into each pixel, and tells one prompt from the other."""

    branches = 1

    def __init__(self, strength: float) -> None:
        self._strength = strength

    def predict(self, batch: Batch) -> Tensor:
        prompts = torch.tensor([float(query.prompt) for query in batch.queries])[:, None, None, None]
        return (batch.crops + batch.crops.mean((2, 3), keepdim=True) + self._strength * prompts).tanh()

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]


def test_farther_than_feather_and_tile_nothing_changes_with_a_regions_prompt() -> None:
    """Tiles that lie still and share nothing: what a tile's prompts are reaches its own pixels, at every step."""
    asked = plan([cover(CANVAS, 9, 12, soft=3)], moving=False, overlap=0)
    one, other = (
        finish(asked, Untiled(Blurred(strength), maker(make("DDIMScheduler", {})), plain_decoder()))
        for strength in (0.1, 0.9)
    )
    changed = (one != other).any(0).any(1)
    assert changed.tolist() == [6 // 8 * 8 <= row < 16 for row in range(32)]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_and_resumption_change_no_byte(ranks: int) -> None:
    asked = plan([cover(Plane(16, 24), 3, 9, soft=2), cover(CANVAS, 6, 18, soft=4)])
    prepared = Untiled(Blurred(0.5), maker(make("DPMSolverMultistepScheduler", {})), plain_decoder())
    alone = finish(asked, prepared)
    with ThreadPoolExecutor(ranks) as pool:
        together = pool.map(lambda group: finish(asked, prepared, group), thread_groups(ranks))
    assert all(torch.equal(alone, each) for each in together)
    for checkpoint in [each.checkpoint for each in generate(asked, prepared) if isinstance(each, Step)]:
        (resumed,) = (
            event.latent for event in generate(asked, prepared, checkpoint) if isinstance(event, FinalState)
        )
        assert torch.equal(resumed, alone)


def test_a_step_counts_every_prediction() -> None:
    asked = plan([cover(CANVAS, 8, 20)])
    steps = [
        event
        for event in generate(asked, Toy().prepare(Conditions("tide", regions=(Prompt("dunes"),))))
        if isinstance(event, Step)
    ]
    denoise = asked.stages[0].denoise
    assert [step.tiles for step in steps] == denoise.count_tiles(4)
    assert sum(denoise.count_tiles(4)) > sum(replace(denoise, regions=None).count_tiles(4))
