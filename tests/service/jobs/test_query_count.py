"""The cost of a picture with regions is what the engine will predict."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest, SentPicture
from api_schemas.stages import lay_stages
from service.jobs.query_count import count_queries
from worker.planner import plan_generation
from worker.regions import lay_regions
from worker.source import lay_source
from worker.source_files import write_source

CARD = ModelCard(
    name="m", family="f", native_size_px=512, alignment_px=64, latent_channels=4, vae_scale=8,
    default_steps=20, default_guidance_scale=7.5,
)  # fmt: skip


def ask(width_px: int, height_px: int, **changes: object) -> ResolvedRequest:
    fields = {"model": "m", "steps": 4, "guidance_scale": 1.0, "width_px": width_px, "height_px": height_px}
    return ResolvedRequest.model_validate(fields | {"seed": 3} | changes)


def count(request: ResolvedRequest) -> list[int]:
    return count_queries(request, CARD, lay_stages(CARD, request))


def count_in_engine(request: ResolvedRequest, folder: Path = Path("none")) -> list[int]:
    inputs = {part: folder / f"{part}.png" for part in ("region_mask_1", "region_mask_2")}
    plan = lay_regions(plan_generation(request, CARD, 1 << 30, folder), request, inputs)
    return [sum(stage.denoise.count_tiles(stage.steps)) for stage in plan.stages]


@st.composite
def requests(draw: st.DrawFn) -> ResolvedRequest:
    width_px, height_px, seamless = draw(
        st.sampled_from(
            [
                (1024, 1024, "none"),
                (1600, 832, "x"),
                (1536, 1024, "both"),
                (1001, 640, "none"),
                (1001, 640, "y"),
            ]
        )
    )
    return ask(
        width_px, height_px, seamless=seamless, seed=draw(st.integers(0, 2**40)), steps=draw(st.integers(1, 8)),
        layout=draw(st.sampled_from(["flat", "cascade"])),
        advanced={"tile_grid": draw(st.sampled_from(["moving", "fixed"]))},
        regions=[draw(regions(width_px, height_px)) for _ in range(draw(st.integers(1, 4)))],
    )  # fmt: skip


@st.composite
def regions(draw: st.DrawFn, width_px: int, height_px: int) -> dict[str, object]:
    left, top = draw(st.integers(0, width_px - 40)), draw(st.integers(0, height_px - 40))
    right, bottom = draw(st.integers(left + 1, width_px)), draw(st.integers(top + 1, height_px))
    rectangle = {"left_px": left, "top_px": top, "width_px": right - left, "height_px": bottom - top}
    shapes = {"rectangle": rectangle}, {"polygon": [(left, top), (right, top), (left, bottom)]}
    return {
        "prompt": "", "weight": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "feather_px": draw(st.sampled_from([0, 32, 300])), "shape": draw(st.sampled_from(shapes)),
    }  # fmt: skip


@settings(max_examples=40)
@given(requests())
def test_it_is_what_the_engine_predicts(request: ResolvedRequest) -> None:
    assert count(request) == count_in_engine(request)


def test_a_region_that_covers_all_costs_what_the_plain_picture_costs() -> None:
    whole = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 1600, "height_px": 832}}
    request = ask(1600, 832, regions=[{"prompt": "", "shape": whole}], advanced={"tile_grid": "fixed"})
    assert count(request) == [CARD.estimate(request, lay_stages(CARD, request)).tiles]


def test_on_a_large_canvas_masks_are_coarser_and_the_count_nearly_right() -> None:
    half = {"polygon": [(0, 0), (8192, 0), (8192, 900), (0, 7000)]}
    request = ask(8192, 8192, regions=[{"prompt": "", "shape": half}] * 8)
    assert count(request) == pytest.approx(count_in_engine(request), rel=0.02)


def test_a_mask_that_nobody_has_seen_counts_everywhere(tmp_path: Path) -> None:
    """And one that is seen as what it is, though reduced."""
    picture = Image.new("L", (1024, 1024))
    picture.paste(255, (100, 100, 300, 900))
    picture.save(tmp_path / "region_mask_1.png")
    masked = {"prompt": "", "shape": {"mask": "region_mask_1"}}
    request = ask(1024, 1024, regions=[masked], advanced={"tile_grid": "fixed"})
    stages = lay_stages(CARD, request)
    seen = count_queries(request, CARD, stages, masks={"region_mask_1": picture.reduce(2)})
    assert seen == pytest.approx(count_in_engine(request, tmp_path), rel=0.05)
    assert count(request) == [2 * CARD.estimate(request, stages).tiles] > seen


@st.composite
def sources(draw: st.DrawFn) -> ResolvedRequest:
    """A source that leaves something free, or of which a part is inpainted."""
    width_px, height_px = draw(st.sampled_from([(1024, 1024), (1600, 832), (1001, 640)]))
    own = draw(st.integers(100, 600)), draw(st.integers(100, 600))
    offset = {"left_px": draw(st.integers(0, 400)), "top_px": draw(st.integers(0, 40))}
    shape = draw(regions(width_px, height_px))["shape"]
    source, mask = draw(
        st.sampled_from([({"offset": offset}, None), ({}, shape), ({"offset": offset}, shape)])
    )
    sent = SentPicture(sha256="", width_px=own[0], height_px=own[1])
    return ask(
        width_px, height_px, source=source, seed=draw(st.integers(0, 2**40)), pictures={"source_image": sent},
        mask=mask and {**mask, "feather_px": 0},
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(sources())
def test_what_is_inpainted_costs_the_tiles_that_it_touches(request: ResolvedRequest) -> None:
    stages = lay_stages(CARD, request)
    found = count_queries(request, CARD, stages, request.source_px)
    with tempfile.TemporaryDirectory() as folder:
        sent = Path(folder) / "source_image.png"
        Image.new("RGB", request.source_px).save(sent)
        files = write_source(request, CARD, {"source_image": sent}, Path(folder))
        plan = lay_source(plan_generation(request, CARD, 1 << 30, Path(folder)), request, files)
    assert found == [sum(stage.denoise.count_tiles(stage.steps)) for stage in plan.stages]
    assert found[0] <= CARD.estimate(request, stages, found).canvas_tiles * 1.1
