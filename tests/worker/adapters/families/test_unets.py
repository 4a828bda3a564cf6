"""What holds for every folder with a UNet."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from api_schemas.allow_list import FAMILIES
from tests.worker.adapters.families.unets import CASES, NOISE, PROMPT, SEED, STEPS, UNetCase, ask
from tests.worker.engine.known_answer import begin, finish
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import denoise
from worker.engine.generate import PreparedModel, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.stitch import Band

ONE_TILE = DenoisePlan(Plane(16, 16), 16, 0, 0, moving=False, seed=SEED)
ASKED = [
    pytest.param(case, asked, id=f"{case.name}-{asked[0]}{asked[1]:g}")
    for case in CASES
    for asked in case.asked
]


@pytest.mark.parametrize(("case", "asked"), ASKED)
def test_one_tile_equals_diffusers_own_pipeline(
    case: UNetCase, asked: tuple[str, float], tmp_path: Path
) -> None:
    pipe = case.build(tmp_path / "tiny")
    noise = initial_noise(SEED, *NOISE)
    theirs = ask(pipe, noise, asked)
    ours = generate_one_tile(load_model(str(tmp_path / "tiny"), "cpu").prepare(Conditions(PROMPT, *asked)))
    assert (theirs - noise).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_many_tiles_do_not_depend_on_who_predicts_them(case: UNetCase, tmp_path: Path) -> None:
    """On a canvas that wraps one way and pulls tiles back the other."""
    case.build(tmp_path / "tiny")
    model = load_model(str(tmp_path / "tiny"), "cpu")
    prepared = model.prepare(Conditions(PROMPT, *case.asked[-1]))
    alone = make_picture(prepared, 2)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda group: make_picture(prepared, 2, group), thread_groups(2)))
    assert alone.shape == (64, 80, 3)
    assert alone.float().std() > 1
    assert all(torch.equal(alone, each) for each in together)
    assert (alone.int() - make_picture(prepared, 3).int()).abs().max() <= 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_allow_list_knows_the_family(case: UNetCase, tmp_path: Path) -> None:
    case.build(tmp_path / "tiny")
    assert load_model(str(tmp_path / "tiny"), "cpu").card.family in FAMILIES


def generate_one_tile(
    prepared: PreparedModel, shown: tuple[float, float] = (1.0, 1.0), steps: int = STEPS
) -> Tensor:
    """The clean latent of a canvas of one tile."""
    ensemble, scheduler = begin(prepared, StagePlan(ONE_TILE, steps, shown=shown))
    latent = initial_noise(SEED, *NOISE) * scheduler.initial_scale
    generator = torch.Generator().manual_seed(SEED)
    return finish(denoise(latent, ONE_TILE, ensemble, scheduler, generator))


def make_picture(prepared: PreparedModel, modules: int, group: Group | None = None) -> Tensor:
    """The picture (H, W, 3) of a canvas of many tiles."""
    denoise = DenoisePlan(Plane(16, 20, (False, True)), 8, 0, 0, moving=True, seed=3)
    plan = GenerationPlan(3, 4, (StagePlan(denoise, 2, modules=modules),), DecodePlan(tile_size=8))
    events = generate(plan, prepared, group=group)
    return torch.cat([event.rows for event in events if isinstance(event, Band)])
