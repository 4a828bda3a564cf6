"""What holds for every transformer family."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.worker.adapters.transformers import CASES, PROMPT, STEPS, FamilyCase
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.denoise import TilePredicted, denoise
from worker.engine.generate import Singer, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band
from worker.engine.sync import Group

ASKED = [(case, scale) for case in CASES for scale in case.guidance_scales]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {case.name: tmp_path_factory.mktemp("models") / case.name for case in CASES}


def load(case: FamilyCase, folders: dict[str, Path]) -> LoadedModel:
    if not folders[case.name].exists():
        case.build(folders[case.name])
    return load_model(str(folders[case.name]), "cpu")


def conditions(case: FamilyCase, scale: float) -> Conditions:
    return Conditions(PROMPT, case.negative_prompt, scale)


def one_tile(side: int) -> DenoisePlan:
    return DenoisePlan(side, side, (False, False), side, 0, 0, moving=False, seed=9)


@pytest.mark.parametrize(("case", "scale"), ASKED, ids=[f"{case.name}-{scale:g}" for case, scale in ASKED])
def test_one_tile_equals_diffusers_own_pipeline(
    case: FamilyCase, scale: float, folders: dict[str, Path]
) -> None:
    pipe = case.build(folders[case.name])
    noise = initial_noise(9, *case.noise)
    theirs = case.ask(pipe, noise, scale, "latent")
    plan = one_tile(case.noise[-1])
    singer = load(case, folders).prepare(conditions(case, scale))
    ensemble, scheduler = singer.begin(StagePlan(plan, STEPS))
    ours = noise.clone()
    events = list(denoise(ours, plan, ensemble, scheduler, torch.Generator()))
    assert (theirs - noise).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    (*_, believed) = [event.clean for event in events if isinstance(event, TilePredicted)]
    torch.testing.assert_close(believed, ours, rtol=1e-2, atol=1e-2)  # no noise is left to be told apart


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_tile_picture_equals_diffusers_own_picture(case: FamilyCase, folders: dict[str, Path]) -> None:
    channels, side, _ = case.noise
    scale = case.guidance_scales[-1]
    pipe = case.build(folders[case.name])
    theirs = case.ask(pipe, initial_noise(9, *case.noise), scale, "np")
    plan = GenerationPlan(9, channels, (StagePlan(one_tile(side), STEPS),), DecodePlan(tile_size=8))
    ours = sing(plan, load(case, folders).prepare(conditions(case, scale)))
    assert theirs.std() > 0.01
    assert (ours.float() - theirs * 255).abs().max() <= 0.51


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_many_tiles_do_not_depend_on_who_sings_them(case: FamilyCase, folders: dict[str, Path]) -> None:
    """On a canvas of odd tile starts that wraps one way and pulls tiles back the other."""
    channels, side, _ = case.noise
    model = load(case, folders)
    singer = model.prepare(conditions(case, case.guidance_scales[-1]))

    def plan(modules: int) -> GenerationPlan:
        denoise = DenoisePlan(side, side + 4, (False, True), side // 2, 0, 0, moving=True, seed=3)
        return GenerationPlan(3, channels, (StagePlan(denoise, 2, modules=modules),), DecodePlan(tile_size=8))

    alone = sing(plan(2), singer)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda group: sing(plan(2), singer, group), thread_groups(2)))
    scale = model.card.vae_scale
    assert alone.shape == (side * scale, (side + 4) * scale, 3)
    assert all(torch.equal(alone, each) for each in together)
    assert (alone.int() - sing(plan(3), singer).int()).abs().max() <= 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_family_cannot_be_told_is_refused_by_name(case: FamilyCase, folders: dict[str, Path]) -> None:
    model = load(case, folders)
    if "global" not in model.card.positions:
        with pytest.raises(
            UnsupportedConditionError, match=r"advanced.positions: 'global' .* allowed: local"
        ):
            model.prepare(Conditions(PROMPT, positions="global"))
    if not model.card.negative_prompt:
        with pytest.raises(UnsupportedConditionError, match=r"negative_prompt: 'moss' .* allowed: empty"):
            model.prepare(Conditions(PROMPT, "moss"))
    assert "local" in model.card.positions


def sing(plan: GenerationPlan, singer: Singer, group: Group | None = None) -> Tensor:
    events = generate(plan, singer, group=group)
    return torch.cat([event.rows for event in events if isinstance(event, Band)])
