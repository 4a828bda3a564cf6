"""Requests become plans in latent pixels."""

from pathlib import Path
from statistics import fmean

import pytest
import torch
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from hypothesis import given
from hypothesis import strategies as st

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest
from api_schemas.layout import Cascade
from api_schemas.scenes import SceneWords
from api_schemas.stages import lay_stages
from worker.engine.attention import AttentionPlan
from worker.engine.plan import GenerationPlan
from worker.engine.start import LowBandPlan, Noise, Upscale
from worker.planner import plan_generation

CARD = ModelCard(
    name="m", family="f", native_size_px=512, alignment_px=64, latent_channels=4, vae_scale=8,
    default_steps=20, default_guidance_scale=7.5,
)  # fmt: skip


def ask(**changes: object) -> ResolvedRequest:
    fields = {"model": "m", "steps": 4, "guidance_scale": 1.0, "seed": 3}
    return ResolvedRequest.model_validate(fields | changes)


def plan(**changes: object) -> GenerationPlan:
    return plan_generation(ask(**changes), CARD, 1 << 30, Path("spill"))


def count_predicted(**changes: object) -> int:
    """Tiles of all steps of all stages, as the engine lays them."""
    return sum(sum(stage.denoise.count_tiles(stage.steps)) for stage in plan(**changes).stages)


@given(st.integers(4, 128), st.integers(4, 128))
def test_pixels_become_latent_pixels(rows: int, columns: int) -> None:
    found = plan(height_px=rows * 64, width_px=columns * 64).stages[-1].denoise
    assert found.canvas.scaled(8).size == (rows * 64, columns * 64)
    assert found.tile_size * 8 == CARD.native_size_px


@given(st.integers(64, 16_384), st.integers(64, 16_384), st.sampled_from(["flat", "cascade"]))
def test_a_canvas_is_the_least_that_is_aligned_and_holds_the_picture(
    height_px: int, width_px: int, layout: str
) -> None:
    stages = plan(height_px=height_px, width_px=width_px, layout=layout).stages
    for side, side_px in (
        (stages[-1].canvas.height, height_px),
        (stages[-1].canvas.width, width_px),
    ):
        assert 0 <= side * 8 - side_px < CARD.alignment_px
    assert stages[-1].shown_px(8) == (height_px, width_px)
    for stage in stages:
        canvas, shown = stage.canvas, stage.whole.shown_px(8)
        assert canvas.height * 8 % CARD.alignment_px == canvas.width * 8 % CARD.alignment_px == 0
        assert abs(shown[0] - canvas.height * 8 * height_px / (stages[-1].canvas.height * 8)) <= 0.5


@pytest.mark.parametrize(
    ("seamless", "wrap"),
    [("none", (False, False)), ("x", (False, True)), ("y", (True, False)), ("both", (True, True))],
)
def test_seamless_in_x_wraps_columns(seamless: str, wrap: tuple[bool, bool]) -> None:
    assert plan(seamless=seamless).canvas.wrap == wrap


def test_a_grid_that_does_not_move_overlaps_by_itself() -> None:
    assert plan(advanced={"tile_grid": "fixed"}).stages[-1].denoise.overlap == 16
    assert plan(advanced={"tile_grid": "fixed", "overlap_px": 0}).stages[-1].denoise.overlap == 0
    assert plan(advanced={"overlap_px": 64}).stages[-1].denoise.overlap == 8
    assert plan().stages[-1].denoise.outer_overlap == 16  # the first and last fifth of a moving grid's steps


def test_stages_become_plans_from_small_to_large() -> None:
    found = plan(width_px=1024, height_px=1536, layout="cascade", steps=10, seamless="x").stages
    sizes = [
        (stage.canvas.height * 8, stage.canvas.width * 8, stage.denoise.tile_size * 8) for stage in found
    ]
    assert sizes == [(768, 512, 768), (1536, 1024, 512)]
    assert [(stage.steps, stage.whole.steps) for stage in found] == [(10, 10), (5, 13)]
    assert [stage.canvas.wrap for stage in found] == [(False, True)] * 2
    assert (
        plan(width_px=1024, height_px=1024).stages
        == plan(width_px=1024, height_px=1024, layout="flat").stages
    )


def test_a_conditioned_stage_starts_from_noise_and_runs_all_of_its_schedule() -> None:
    cascade = Cascade(steps=[5, 4], conditioned=True, enlarges=4, augmentation=0.2)
    card = CARD.model_copy(update={"cascade": cascade, "layout": "cascade"})
    request = ask(width_px=2048, height_px=2048, steps=5)
    found = plan_generation(request, card, 1 << 30, Path("spill")).stages
    assert [stage.start for stage in found] == [Noise(), Upscale(0.2)]
    assert [(stage.steps, stage.whole.steps) for stage in found] == [(5, 5), (4, 4)]
    assert [stage.whole.start for stage in found] == [stage.start for stage in found]
    counted = sum(sum(stage.denoise.count_tiles(stage.steps)) for stage in found)
    assert card.estimate(request, lay_stages(card, request)).tiles == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((2048, 2048), [None]),  # the first stage's picture is no enlarged one
        ((1024, 1024), [None]),
        ((4096, 4096), [None, (128, 128)]),
        ((3000, 4096), [None, (128, 94)]),
        ((8192, 8192), [None, None]),
    ],
)
def test_what_was_enlarged_is_shown_so_small_that_it_is_enlarged_as_far_as_can_be(
    size: tuple[int, int], reduced: list[tuple[int, int] | None]
) -> None:
    cascade = Cascade(steps=[5, 4], conditioned=True, enlarges=4)
    card = CARD.model_copy(update={"cascade": cascade, "layout": "cascade"})
    width, height = size
    found = plan_generation(ask(width_px=width, height_px=height), card, 1 << 30, Path("spill")).stages
    assert [stage.start.reduced for stage in found if isinstance(stage.start, Upscale)] == reduced


@pytest.mark.parametrize(("upscale", "reduced"), [(4, [None]), (5, [None, None]), (8, [None, (64, 64)])])
def test_a_source_is_shown_reduced_only_where_twice_its_size_is_left(
    upscale: int, reduced: list[tuple[int, int] | None]
) -> None:
    cascade = Cascade(steps=[5, 4], conditioned=True, enlarges=4)
    card = CARD.model_copy(update={"cascade": cascade})
    side = 256 * upscale
    request = ask(width_px=side, height_px=side, source={}, upscale=upscale)
    found = plan_generation(request, card, 1 << 30, Path("spill")).stages
    assert [stage.start.reduced for stage in found if isinstance(stage.start, Upscale)] == reduced


@pytest.mark.parametrize(
    ("fidelity", "augmentation", "weight", "held"),
    [
        (None, 0.2, None, 1.0),
        (1.0, 0.0, 0.6, 1.0),
        (0.75, 0.1, 0.3, 1.0),
        (0.5, 0.2, None, 1.0),
        (0.2, 0.2, -0.15, 0.4),
        (0.0, 0.2, -0.25, 0.0),
    ],
)
def test_a_conditioned_stage_sees_a_source_the_more_clearly_the_higher_its_fidelity_and_keeps_to_it(
    fidelity: float | None, augmentation: float, weight: float | None, held: float
) -> None:
    card = CARD.model_copy(update={"cascade": Cascade(conditioned=True, augmentation=0.2)})
    asked = {"source": {}, "upscale": 2, "fidelity": fidelity, "width_px": 2048, "height_px": 2048}
    found = plan_generation(ask(**asked), card, 1 << 30, Path("spill")).stages
    kept = None if weight is None else LowBandPlan(pytest.approx(weight), pytest.approx(weight), cutoff=None)
    assert [stage.start for stage in found] == [
        Upscale(pytest.approx(augmentation), low_band=kept, held=held)
    ]


SIDES = ((1024, 1024), (2048, 1536), (1600, 832), (2944, 512), (2480, 3508), (1001, 64))
SEAMLESS = ("none", "x", "y", "both")


def estimate_tiles(card: ModelCard = CARD, **changes: object) -> int:
    request = ask(**changes)
    return card.estimate(request, lay_stages(card, request)).tiles


@pytest.mark.parametrize("layout", ["flat", "cascade"])
@pytest.mark.parametrize("seamless", SEAMLESS)
@pytest.mark.parametrize("size", SIDES)
def test_the_estimate_is_the_mean_of_what_is_denoised(
    size: tuple[int, int], seamless: str, layout: str
) -> None:
    """Seeds enter the shifts modulo 997; a few steps may lie a little off the mean of all of them."""
    chosen = {"width_px": size[0], "height_px": size[1], "seamless": seamless, "layout": layout, "steps": 12}
    predicted = fmean(count_predicted(**chosen, seed=seed) for seed in range(0, 997, 13))
    assert estimate_tiles(**chosen) == pytest.approx(predicted, rel=0.01, abs=1)


@given(
    st.integers(4, 40),
    st.integers(4, 40),
    st.sampled_from((("fixed", "none"), ("fixed", "x"), ("fixed", "both"), ("moving", "both"))),
    st.none() | st.integers(0, 6),
    st.integers(1, 9),
)
def test_where_no_seed_decides_the_estimate_is_what_is_denoised(
    rows: int, columns: int, grid: tuple[str, str], shared: int | None, steps: int
) -> None:
    advanced = {"tile_grid": grid[0], "overlap_px": None if shared is None else shared * 64}
    chosen = {"height_px": rows * 64, "width_px": columns * 64, "seamless": grid[1], "advanced": advanced}
    assert estimate_tiles(**chosen, steps=steps) == count_predicted(**chosen, steps=steps)


@pytest.mark.parametrize("interval", [[0.0, 1.0], [0.2, 0.8], [0.0, 0.6], [0.3, 0.3], [0.95, 1.0]])
def test_guidance_keeps_to_its_noise_levels_in_every_stage(interval: list[float]) -> None:
    """A later stage of strength 0.4 is the tail of a schedule, of which diffusers' guider says where it guides."""
    asked = {"width_px": 2048, "height_px": 2048, "layout": "cascade", "steps": 30, "guidance_scale": 5.0}
    advanced = {"guidance_interval": interval, "tile_grid": "fixed"}
    unguided, stages = 0, plan(**asked, advanced=advanced).stages
    for stage, whole in zip(stages, (30, 38, 30), strict=True):
        guider = ClassifierFreeGuidance(5.0, start=interval[0], stop=interval[1])
        for index, tiles in enumerate(stage.denoise.count_tiles(stage.steps)):
            guider.set_state(
                step=whole - stage.steps + index, num_inference_steps=whole, timestep=torch.tensor(0)
            )
            assert stage.denoise.is_guided_at(index, stage.steps) == (guider.num_conditions == 2)
            unguided += tiles * (guider.num_conditions == 1)
    request = ask(**asked, advanced=advanced)
    cost = CARD.estimate(request, lay_stages(CARD, request))
    assert cost.unguided_tiles == unguided
    assert cost.work == sum(sum(stage.denoise.weigh_tiles(stage.steps)) for stage in stages)
    assert cost.work == cost.tiles - unguided / 2


def test_an_interval_is_the_cards_unless_asked_and_none_where_nothing_is_guided() -> None:
    card = CARD.model_copy(update={"guidance_interval": (0.25, 0.75)})

    def guided(**changes: object) -> tuple[float, float]:
        return plan_generation(ask(**changes), card, 1, Path()).stages[0].denoise.guided

    assert guided(guidance_scale=5.0) == (0.25, 0.75)
    assert guided(guidance_scale=5.0, advanced={"guidance_interval": [0, 0.5]}) == (0.0, 0.5)
    assert guided(guidance_scale=5.0, advanced={"guidance_interval": [0, 1]}) == (0.0, 1.0)
    assert guided(guidance_scale=1.0) == (0.0, 1.0)
    asked = {"guidance_scale": 5.0, "advanced": {"guidance_interval": [0, 1]}}
    assert plan(**asked) == plan(guidance_scale=5.0), "today's plan, so today's bytes"


ATTENTIVE = CARD.model_copy(update={"attention": ["off", "conductor", "conductor+neighbours"]})


def plan_attention(card: ModelCard, **changes: object) -> AttentionPlan | None:
    request = ask(**changes)
    plan = plan_generation(request, card, 1, Path())
    return plan.stages[-1].denoise.attention


@given(st.integers(17, 128), st.integers(17, 128))
def test_a_conductor_is_about_one_tile_of_the_canvas_own_shape(rows: int, columns: int) -> None:
    unit = CARD.alignment_px // CARD.vae_scale
    chosen = {
        "height_px": rows * CARD.alignment_px,
        "width_px": columns * CARD.alignment_px,
        "layout": "flat",
    }
    plan = plan_attention(ATTENTIVE, **chosen, advanced={"attention": "conductor"})
    assert plan is not None
    height, width = plan.conductor
    native = CARD.native_size_px // CARD.vae_scale
    assert height % unit == width % unit == 0
    assert height * width <= native**2 * 1.3
    assert max(height, width) <= 2 * native + unit
    assert plan.unit == unit
    assert abs(height - width * rows / columns) <= unit * max(1, rows / columns)


def test_attention_is_as_the_request_says_or_else_the_card() -> None:
    large = {"width_px": 2048, "height_px": 2048, "layout": "flat"}
    assert plan_attention(ATTENTIVE, **large) is None
    auto = ATTENTIVE.model_copy(update={"auto_attention": "conductor", "attention_strength": 0.7})
    chosen = plan_attention(auto, **large)
    assert chosen is not None
    assert (chosen.strength, chosen.neighbours) == (0.7, False)
    asked = {"attention": "conductor+neighbours", "attention_strength": 0.1}
    chosen = plan_attention(auto, **large, advanced=asked)
    assert chosen is not None
    assert (chosen.strength, chosen.neighbours) == (0.1, True)
    assert plan_attention(auto, **large, advanced={"attention": "off"}) is None
    assert plan_attention(auto, **large, advanced={"attention": "conductor", "attention_strength": 0}) is None
    assert plan_attention(auto, width_px=512, height_px=512) is None
    # At two tiles a side the conductor is the canvas at half size, as a neighbourhood would be.
    chosen = plan_attention(auto, width_px=1024, height_px=1024, layout="flat", advanced=asked)
    assert chosen is not None
    assert not chosen.neighbours


def test_the_estimate_counts_what_is_predicted_to_be_attended_to() -> None:
    """One conductor a step in the first two fifths of ten steps; a neighbourhood for each of their tiles."""
    large = {"width_px": 2048, "height_px": 2048, "layout": "flat", "steps": 10}
    tiles, conductor, both = (
        estimate_tiles(**large, advanced={"attention": kind}, card=ATTENTIVE)
        for kind in ("off", "conductor", "conductor+neighbours")
    )
    assert conductor == tiles + 4
    assert both == conductor + round(tiles * 4 / 10)


def test_a_region_is_counted_with_what_it_attends_to() -> None:
    """Twice the tiles and their neighbourhoods, but one conductor a step."""
    large = {"width_px": 2048, "height_px": 2048, "layout": "flat", "steps": 10}
    request = ask(**large, advanced={"attention": "conductor+neighbours"})
    assert ATTENTIVE.estimate(request, lay_stages(ATTENTIVE, request), [400]).tiles == 400 + 160 + 4


def test_a_conditioned_stage_attends_to_nothing_else() -> None:
    cascade = Cascade(steps=[5, 4], conditioned=True, enlarges=4)
    card = ATTENTIVE.model_copy(update={"cascade": cascade, "layout": "cascade"})
    request = ask(
        width_px=2048, height_px=2048, advanced={"attention": "conductor+neighbours", "tile_size_px": 256}
    )
    first, second = plan_generation(request, card, 1, Path()).stages
    assert first.denoise.attention is not None
    assert (second.start, second.denoise.attention) == (Upscale(0.1), None)


@pytest.mark.parametrize(
    ("prompt", "layout", "evenly"),
    [("grass", "flat", True), ("mountains", "flat", False), ("grass", "cascade", False)],
)
def test_what_is_no_texture_is_synced_by_likeness(prompt: str, layout: str, evenly: bool) -> None:
    card = CARD.model_copy(update={"scene_words": SceneWords(bias=-1, weights={2: "mountains", -2: "grass"})})
    request = ask(prompt=prompt, layout=layout, width_px=1024, height_px=1024)
    assert {stage.synced_evenly for stage in plan_generation(request, card, 1, Path()).stages} == {evenly}
