from pathlib import Path

import pytest
import torch

from tests.tiny_models import tiny_stable_diffusion_xl
from tests.worker.engine.known_answer import predict
from worker.adapters.families.stable_diffusion_xl import Caption, load
from worker.adapters.model import Conditions
from worker.engine.canvas import Plane, Rectangle
from worker.engine.ensemble import Batch, Query
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan

FLAT = DenoisePlan(Plane(24, 40), 16, 0, 4, moving=True, seed=9, outer_shares=(0.2, 0.2))
TORUS = DenoisePlan(Plane(24, 40, (True, True)), 16, 0, 4, moving=True, seed=9, outer_shares=(0.2, 0.2))


def test_a_tile_is_told_that_it_is_a_crop_of_the_canvas() -> None:
    caption = Caption(torch.zeros(2, 8), FLAT.canvas, scale=4)
    assert caption.measure(Rectangle(0, 0, 16, 16)) == [96, 160, 0, 0, 64, 64]
    assert caption.measure(Rectangle(8, 24, 16, 16)) == [96, 160, 32, 96, 64, 64]


def test_no_tile_of_a_torus_is_nearer_to_a_border() -> None:
    caption = Caption(torch.zeros(2, 8), TORUS.canvas, scale=4)
    places = {tuple(caption.measure(Rectangle(top, left, 16, 16))) for top in (0, 11, 23) for left in (0, 39)}
    assert places == {(96, 160, 16, 48, 64, 64)}


def test_sizes_are_told_to_the_pixel() -> None:
    caption = Caption(torch.zeros(2, 8, dtype=torch.bfloat16), FLAT.canvas, scale=253)
    told = caption.tell(
        Batch(torch.zeros(1, 4, 16, 16), torch.tensor([500]), (Query(Rectangle(7, 24, 16, 16), 1),))
    )
    assert told["time_ids"].tolist() == [[6072, 10120, 1771, 6072, 4048, 4048]]


@torch.inference_mode()
def test_where_a_tile_lies_is_heard(tmp_path: Path) -> None:
    tiny_stable_diffusion_xl(tmp_path / "tiny")
    replica = load(tmp_path / "tiny", torch.device("cpu")).encode(Conditions("dune"))(StagePlan(FLAT, 4))
    crops = initial_noise(9, 4, 16, 16).expand(2, -1, -1, -1)
    tiles = [Rectangle(0, 0, 16, 16), Rectangle(8, 24, 16, 16)]
    first, second = predict(replica, crops, 500, tiles, [0, 0])
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("few_steps", "consistency", "habits"),
    [
        (False, False, (50, 5.0, True)),
        (True, False, (4, 1.0, True)),
        (False, True, (4, 8.5, False)),
    ],
)
def test_a_distilled_model_is_known_by_its_scheduler(
    tmp_path: Path, few_steps: bool, consistency: bool, habits: tuple[int, float, bool]
) -> None:
    tiny_stable_diffusion_xl(tmp_path / "tiny", consistency=consistency, few_steps=few_steps)
    known = load(tmp_path / "tiny", torch.device("cpu")).habits
    assert (known.steps, known.guidance_scale, known.negative_prompt) == habits
