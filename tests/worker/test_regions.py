"""The request's regions on every stage of a plan."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from api_schemas.generation import PicturePart, ResolvedRequest
from tests.worker.test_planner import CARD, ask
from worker.engine.plan import GenerationPlan
from worker.engine.regions import Regions
from worker.planner import plan_generation
from worker.regions import find_faint_regions, find_scaled_masks, lay_regions

LOWER = {"rectangle": {"left_px": 0, "top_px": 512, "width_px": 1024, "height_px": 512}}
MASKED = {"prompt": "moss", "shape": {"mask": "region_mask_2"}, "feather_px": 0}


def lay(request: ResolvedRequest, inputs: dict[PicturePart, Path] | None = None) -> GenerationPlan:
    return lay_regions(plan_generation(request, CARD, 1 << 30, Path("spill")), request, inputs or {})


def regions_of(plan: GenerationPlan) -> list[Regions]:
    found = [stage.denoise.regions for stage in plan.stages]
    return [each for each in found if each is not None]


def test_every_stage_has_the_regions_at_its_own_size() -> None:
    """64, then 128 latent pixels a side."""
    dunes = {"prompt": "dunes", "shape": LOWER, "seed": 9, "feather_px": 0}
    found = regions_of(lay(ask(width_px=1024, height_px=1024, layout="cascade", regions=[dunes])))
    assert [each.weights.shape for each in found] == [(2, 64, 64), (2, 128, 128)]
    for each in found:
        half = len(each.weights[0]) // 2
        assert each.seeds == (None, 9)
        assert (each.weights[1, half:] == 1).all()
        assert (each.weights[1, :half] == 0).all()


def test_a_request_without_regions_has_the_plan_that_it_had() -> None:
    request = ask(width_px=1024, height_px=1024)
    assert lay(request) == plan_generation(request, CARD, 1 << 30, Path("spill"))
    assert regions_of(lay(request)) == []


def test_a_mask_is_read_from_the_file_that_came_with_the_job(tmp_path: Path) -> None:
    picture = Image.new("RGB", (1024, 1024))
    picture.paste((255, 255, 255), (0, 512, 1024, 1024))
    picture.save(tmp_path / "mask.png")
    asked = ask(width_px=1024, height_px=1024, regions=[MASKED])
    (masked,) = regions_of(lay(asked, {"region_mask_2": tmp_path / "mask.png"}))
    (drawn,) = regions_of(lay(ask(width_px=1024, height_px=1024, regions=[MASKED | {"shape": LOWER}])))
    assert torch.equal(masked.weights, drawn.weights)


@pytest.mark.parametrize(("sent", "told"), [((1024, 768), 0), ((512, 384), 1), ((1024, 769), 1)])
def test_a_mask_of_another_size_is_told(sent: tuple[int, int], told: int) -> None:
    picture = {"sha256": "0" * 64, "width_px": sent[0], "height_px": sent[1]}
    request = ask(width_px=1024, height_px=768, regions=[MASKED, MASKED], pictures={"region_mask_2": picture})
    messages = list(find_scaled_masks(request))
    assert len(messages) == told
    for message in messages:
        assert message.startswith(f"region_mask_2 has {sent[0]}x{sent[1]} px and the picture 1024x768 px")


@pytest.mark.parametrize(
    ("side_px", "feather_px", "weight", "told"),
    [(400, 32, 1.0, False), (10, 1000, 1.0, True), (10, 0, 1.0, False), (400, 32, 1e-9, True)],
)
def test_a_region_that_hardly_counts_is_told(
    side_px: int, feather_px: int, weight: float, told: bool
) -> None:
    shape = {"rectangle": {"left_px": 200, "top_px": 200, "width_px": side_px, "height_px": side_px}}
    small = {"prompt": "moss", "shape": shape, "feather_px": feather_px, "weight": weight}
    large = {"prompt": "sand", "shape": LOWER, "feather_px": 0}
    messages = list(find_faint_regions(lay(ask(width_px=1024, height_px=1024, regions=[large, small]))))
    assert len(messages) == told
    assert all(message.startswith("regions.1 counts for ") for message in messages)
    assert not list(find_faint_regions(lay(ask(width_px=1024, height_px=1024))))


def test_plans_of_ranks_are_the_leaders() -> None:
    """Each rank lays the regions itself, on the plan that the leader sends without them."""
    request = ask(
        width_px=1024,
        height_px=640,
        regions=[
            {"prompt": "dunes", "shape": LOWER | {"rectangle": LOWER["rectangle"] | {"height_px": 100}}}
        ],
    )
    bare = plan_generation(request, CARD, 1 << 30, Path("spill"))
    one, other = (lay_regions(bare, request, {}) for _ in range(2))
    (first,), (second,) = regions_of(one), regions_of(other)
    assert torch.equal(first.weights, second.weights)
    (stage,) = one.stages
    assert replace(stage, denoise=replace(stage.denoise, regions=None)) == bare.stages[0]
