"""Stages of a picture, and what they cost."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_schemas.advanced import AdvancedSettings, StageSettings
from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest
from api_schemas.layout import Cascade, lay_sizes, widen_first
from api_schemas.stages import lay_stages

CARD = ModelCard(
    name="m", family="f", native_size_px=1024, alignment_px=64, latent_channels=4, vae_scale=8,
    default_steps=30, default_guidance_scale=5.0, layout="cascade",
)  # fmt: skip

sides = st.integers(4, 256).map(lambda count: count * 64)


@given(sides, sides)
def test_sizes_are_aligned_double_and_end_with_the_pictures_own(width: int, height: int) -> None:
    sizes = lay_sizes(width, height, 1024, 64)
    assert sizes[-1] == (width, height)
    assert all(side % 64 == 0 for size in sizes for side in size)
    assert min(sizes[0]) <= 1.1 * 1024
    for below, above in pairwise(sizes):
        assert below < above
        assert all(1 <= larger / smaller <= 2.2 for smaller, larger in zip(below, above, strict=True))


def test_the_last_factor_is_what_is_left() -> None:
    assert lay_sizes(4096, 4096, 1024, 64) == [(1024, 1024), (2048, 2048), (4096, 4096)]
    assert lay_sizes(3072, 4608, 1024, 64) == [(1024, 1536), (2048, 3072), (3072, 4608)]
    assert lay_sizes(1024, 8192, 1024, 64) == [(1024, 8192)]


def test_no_stage_is_there_for_a_few_pixels_more() -> None:
    assert lay_sizes(1088, 1088, 1024, 64) == [(1088, 1088)]
    assert lay_sizes(1152, 1152, 1024, 64) == [(1024, 1024), (1152, 1152)]
    assert lay_sizes(2112, 2112, 1024, 64) == [(1024, 1024), (2112, 2112)]
    assert lay_sizes(2104, 2104, 512, 8, enlarges=4) == [(512, 512), (2104, 2104)]


def test_a_first_stage_is_a_little_larger_where_that_saves_one() -> None:
    squares = {
        side: widen_first(side, side, 512, 4, 1024) for side in (600, 2048, 2248, 2304, 2560, 2568, 9216)
    }
    assert squares == {600: 512, 2048: 512, 2248: 512, 2304: 576, 2560: 640, 2568: 512, 9216: 576}
    assert [widen_first(side, side, 1024, 2, 2048) for side in (1152, 2304, 3072)] == [1024, 1152, 1024]
    assert widen_first(3456, 2304, 512, 4, 1024) == 576
    assert widen_first(4608, 2304, 512, 4, 1024) == 512  # else its first stage would be two rows of tiles
    assert widen_first(2304, 2304, 1024, 2, 1024) == 1024


def test_steps_and_strengths_are_the_cards_unless_asked() -> None:
    plain = GenerationRequest(width_px=4096, height_px=4096)
    assert [(stage.steps, stage.schedule_steps) for stage in lay_stages(CARD, plain)] == [
        (30, 30),
        (15, 38),
        (12, 30),
    ]
    few = plain.model_copy(update={"steps": 4})
    assert [stage.steps for stage in lay_stages(CARD, few)] == [4, 2, 2]
    asked = AdvancedSettings(stages=[StageSettings(), StageSettings(steps=7, strength=0.5)])
    stages = lay_stages(CARD, plain.model_copy(update={"advanced": asked}))
    assert [(stage.steps, stage.schedule_steps) for stage in stages] == [(30, 30), (7, 14), (12, 30)]


def test_the_smallest_stage_is_one_tile_where_that_is_no_panorama() -> None:
    for size, tile in (((3072, 4608), 1536), ((8192, 2048), 1024)):
        first, *_, last = lay_stages(CARD, GenerationRequest(width_px=size[0], height_px=size[1]))
        assert (first.tiling.tile_size_px, last.tiling.tile_size_px) == (
            tile,
            tile if first is last else 1024,
        )
    (only,) = lay_stages(CARD, GenerationRequest(width_px=1536, height_px=1024))
    assert only.tiling.tile_size_px == 1536
    asked = GenerationRequest(width_px=2048, height_px=2048, advanced=AdvancedSettings(tile_size_px=512))
    assert {stage.tiling.tile_size_px for stage in lay_stages(CARD, asked)} == {512}


@pytest.mark.parametrize(
    ("size", "first", "is_one_tile"),
    [
        ((2048, 3072), (1024, 1536), True),
        ((2048, 4096), (768, 1536), True),
        ((1024, 3072), (512, 1536), True),
        ((1024, 16384), (256, 4096), False),
        ((4096, 2048), (2048, 1024), True),
    ],
)
def test_the_smallest_stage_of_what_is_tall_is_not_much_taller_than_a_native_picture(
    size: tuple[int, int], first: tuple[int, int], is_one_tile: bool
) -> None:
    """Or there is a horizon, and a sky, in each piece of it; a panorama may go on."""
    stage = lay_stages(CARD, GenerationRequest(width_px=size[0], height_px=size[1]))[0]
    assert (stage.width_px, stage.height_px) == first
    assert (stage.tiling.tile_size_px >= max(first)) is is_one_tile


@pytest.mark.parametrize("layout", ["flat", "cascade"])
def test_a_request_says_it_before_the_card(layout: str) -> None:
    request = GenerationRequest.model_validate({"width_px": 2048, "height_px": 2048, "layout": layout})
    other = CARD.model_copy(update={"layout": "flat" if layout == "cascade" else "cascade"})
    assert len(lay_stages(other, request)) == (1 if layout == "flat" else 2)


def test_the_cost_counts_all_stages() -> None:
    bare = AdvancedSettings(overlap_px=0)
    request = GenerationRequest(width_px=4096, height_px=4096, seamless="both", advanced=bare)
    requests = (request.model_copy(update={"layout": each}) for each in ("auto", "flat"))
    cascade, flat = (CARD.estimate(each, lay_stages(CARD, each)) for each in requests)
    assert (cascade.steps, cascade.tiles) == (57, 30 + 4 * 15 + 16 * 12)
    assert (flat.steps, flat.tiles) == (30, 16 * 30)
    assert cascade.megapixel_steps < flat.megapixel_steps


CONDITIONED = ModelCard(
    name="c", family="f", native_size_px=512, alignment_px=32, latent_channels=24, vae_scale=8,
    default_steps=5, default_guidance_scale=1.0, layout="cascade",
    cascade=Cascade(steps=[5, 4], conditioned=True, enlarges=4),
)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), [(512, 512)]),
        ((1536, 1536), [(512, 512), (1536, 1536)]),
        ((2048, 2048), [(512, 512), (2048, 2048)]),
        ((4096, 4096), [(512, 512), (2048, 2048), (4096, 4096)]),
        ((8192, 8192), [(512, 512), (2048, 2048), (8192, 8192)]),
        ((4096, 2048), [(1024, 512), (4096, 2048)]),
    ],
)
def test_conditioned_stages_are_up_to_four_times_larger_each(
    size: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    stages = lay_stages(CONDITIONED, GenerationRequest(width_px=size[0], height_px=size[1]))
    assert [(stage.width_px, stage.height_px) for stage in stages] == expected
    assert [stage.steps for stage in stages] == [5, *[4] * (len(stages) - 1)]
    assert [stage.conditioned for stage in stages] == [False, *[True] * (len(stages) - 1)]
    assert {stage.schedule_steps for stage in stages} <= {5, 4}  # all of the schedule


def test_a_lead_and_its_full_size_stage_cost_less_than_a_flat_picture() -> None:
    requests = (GenerationRequest(width_px=2048, height_px=2048, layout=each) for each in ("auto", "flat"))
    cascade, flat = (CONDITIONED.estimate(each, lay_stages(CONDITIONED, each)) for each in requests)
    assert cascade.tiles < flat.tiles


def test_a_source_begins_with_the_tail_of_the_schedule_as_diffusers_rounds_it() -> None:
    """`get_timesteps` of StableDiffusionImg2ImgPipeline: min(int(steps * strength), steps) of them are run."""
    for steps, strength, run in ((30, 0.6, 18), (10, 0.35, 3), (4, 0.2, 0), (4, 1.0, 4)):
        request = GenerationRequest.model_validate({"source": {}, "steps": steps, "strength": strength})
        (stage,) = lay_stages(CARD, request)
        assert (stage.steps, stage.schedule_steps, stage.given) == (run, steps, (1024, 1024))


@pytest.mark.parametrize(
    ("conditioned", "times", "sizes", "given"),
    [
        (False, 2, [1536], (1536, 1536)),
        (False, 4, [1536, 3072], (1536, 1536)),
        (False, 3, [1536, 2304], (1536, 1536)),
        (True, 4, [3072], (3072, 3072)),
        (True, 8, [3072, 6144], (3072, 3072)),
    ],
)
def test_a_source_is_enlarged_from_its_own_size_on(
    conditioned: bool, times: int, sizes: list[int], given: tuple[int, int]
) -> None:
    cascade = Cascade(conditioned=conditioned, enlarges=4 if conditioned else 2)
    card = CARD.model_copy(update={"cascade": cascade})
    side = 768 * times
    request = GenerationRequest.model_validate(
        {"source": {}, "upscale": times, "width_px": side, "height_px": side}
    )
    stages = lay_stages(card, request)
    assert [stage.width_px for stage in stages] == sizes
    assert [stage.given for stage in stages] == [given, *[None] * (len(sizes) - 1)]
    assert [stage.steps for stage in stages] == [15, 12][: len(sizes)]


def test_a_source_whose_canvas_is_as_large_as_the_pictures_has_one_stage() -> None:
    card = CARD.model_copy(update={"cascade": Cascade(conditioned=True, enlarges=4)})
    asked = {"source": {}, "upscale": 8, "width_px": 64, "height_px": 64}
    stages = lay_stages(card, GenerationRequest.model_validate(asked))
    assert [(stage.width_px, stage.height_px) for stage in stages] == [(64, 64)]


def test_fidelity_is_what_strength_leaves() -> None:
    asked = {"source": {}, "upscale": 2, "width_px": 2048, "height_px": 2048}
    strengths = [
        lay_stages(CARD, GenerationRequest.model_validate(asked | {"fidelity": fidelity}))[0].strength
        for fidelity in (0, 0.5, 1)
    ]
    assert strengths == pytest.approx([0.6, 0.35, 0.1], abs=0.02)
