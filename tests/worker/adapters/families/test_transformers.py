"""What holds for every transformer family."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from api_schemas.allow_list import FAMILIES
from api_schemas.folder_settings import FolderSettings
from tests.worker.adapters.families.transformers import CASES, PROMPT, STEPS, FamilyCase
from tests.worker.engine.known_answer import begin, predict
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.family import Family
from worker.adapters.family_model import FamilyModel, PreparedFamily
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Checkpoint, Step, TilePredicted, denoise
from worker.engine.ensemble import Replica
from worker.engine.generate import PreparedModel, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.start import LowBandPlan, Picture
from worker.engine.stitch import Band

ASKED = [(case, scale) for case in CASES for scale in case.guidance_scales]


def named(case: FamilyCase) -> str:
    return case.name


class Families:
    """Diffusers' pipeline and our model of each case, of one folder, made once: neither keeps anything of a picture."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pipes = dict[str, DiffusionPipeline]()
        self._models = dict[str, LoadedModel]()

    def build(self, case: FamilyCase) -> DiffusionPipeline:
        if case.name not in self._pipes:
            self._pipes[case.name] = case.build(self._root / case.name)
        return self._pipes[case.name]

    def load(self, case: FamilyCase) -> LoadedModel:
        self.build(case)
        if case.name not in self._models:
            self._models[case.name] = load_model(str(self._root / case.name), "cpu")
        return self._models[case.name]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    return Families(tmp_path_factory.mktemp("models"))


def conditions(case: FamilyCase, scale: float) -> Conditions:
    return Conditions(PROMPT, case.negative_prompt, scale)


def one_tile(case: FamilyCase) -> DenoisePlan:
    _, height, width = case.noise
    return DenoisePlan(Plane(height, width), max(height, width), 0, 0, moving=False, seed=9)


@pytest.mark.parametrize(("case", "scale"), ASKED, ids=[f"{case.name}-{scale:g}" for case, scale in ASKED])
def test_one_tile_equals_diffusers_own_pipeline(case: FamilyCase, scale: float, families: Families) -> None:
    pipe = families.build(case)
    noise = initial_noise(9, *case.noise)
    theirs = case.ask(pipe, noise, scale, "latent")
    plan = one_tile(case)
    prepared = families.load(case).prepare(conditions(case, scale))
    ensemble, scheduler = begin(prepared, StagePlan(plan, STEPS))
    ours, estimated = noise, noise
    for event in denoise(noise, plan, ensemble, scheduler, torch.Generator()):
        if isinstance(event, TilePredicted):
            estimated = event.clean
        elif isinstance(event, Step):
            ours = event.checkpoint.tensors["latent"]
    assert (theirs - noise).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(estimated, ours, rtol=1e-2, atol=1e-2)  # no noise is left to be told apart


@pytest.mark.parametrize("case", CASES, ids=named)
def test_one_tile_picture_equals_diffusers_own_picture(case: FamilyCase, families: Families) -> None:
    scale = case.guidance_scales[-1]
    pipe = families.build(case)
    theirs = case.ask(pipe, initial_noise(9, *case.noise), scale, "np")
    plan = GenerationPlan(9, case.noise[0], (StagePlan(one_tile(case), STEPS),), DecodePlan(tile_size=8))
    ours = make_picture(plan, families.load(case).prepare(conditions(case, scale)))
    assert theirs.std() > 0.01
    assert (ours.float() - theirs * 255).abs().max() <= 0.51


@pytest.mark.parametrize("case", CASES, ids=named)
def test_many_tiles_do_not_depend_on_who_predicts_them(case: FamilyCase, families: Families) -> None:
    """On a canvas of odd tile starts that wraps one way and pulls tiles back the other."""
    channels, side, _ = case.noise
    model = families.load(case)
    prepared = model.prepare(conditions(case, case.guidance_scales[-1]))

    def plan(modules: int) -> GenerationPlan:
        denoise = DenoisePlan(Plane(side, side + 4, (False, True)), side // 2, 0, 0, moving=True, seed=3)
        return GenerationPlan(3, channels, (StagePlan(denoise, 2, modules=modules),), DecodePlan(tile_size=8))

    alone = make_picture(plan(2), prepared)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda group: make_picture(plan(2), prepared, group), thread_groups(2)))
    scale = model.card.vae_scale
    assert alone.shape == (side * scale, (side + 4) * scale, 3)
    assert all(torch.equal(alone, each) for each in together)
    assert (alone.int() - make_picture(plan(3), prepared).int()).abs().max() <= 1


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_cascade_goes_on_from_a_checkpoint_to_the_same_bytes(case: FamilyCase, families: Families) -> None:
    """In its second stage, whose schedule is a tail and whose low band is the first stage's."""
    channels, height, width = case.noise
    small = DenoisePlan(Plane(height, width, (False, True)), max(height, width), 0, 0, moving=True, seed=3)
    large = replace(small, canvas=small.canvas.scaled(2))
    second = StagePlan(large, 2, Picture(2, LowBandPlan()))
    plan = GenerationPlan(3, channels, (StagePlan(small, 2), second), DecodePlan(tile_size=8))
    prepared = families.load(case).prepare(conditions(case, case.guidance_scales[-1]))
    rows: list[Tensor] = []
    kept: list[Checkpoint] = []
    for event in generate(plan, prepared):
        match event:
            case Step():
                kept.append(event.checkpoint)
            case Band():
                rows.append(event.rows)
            case _:
                pass
    assert len(kept) == 4
    resumed = [event.rows for event in generate(plan, prepared, kept[2]) if isinstance(event, Band)]
    assert torch.equal(torch.cat(resumed), torch.cat(rows))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_allow_list_knows_the_family(case: FamilyCase, families: Families) -> None:
    assert families.load(case).card.family in FAMILIES


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_native_tile_is_one_that_the_model_can_be_given(case: FamilyCase, families: Families) -> None:
    card = families.load(case).card
    assert card.native_size_px <= card.max_tile_size_px


@pytest.mark.parametrize("case", CASES, ids=named)
def test_what_a_family_cannot_be_told_is_refused_by_name(case: FamilyCase, families: Families) -> None:
    model = families.load(case)
    if "global" not in model.card.positions:
        with pytest.raises(
            UnsupportedConditionError, match=r"advanced.positions: 'global' .* allowed: local"
        ):
            model.prepare(Conditions(PROMPT, positions="global"))
    if not model.card.negative_prompt:
        with pytest.raises(UnsupportedConditionError, match=r"negative_prompt: 'moss' .* allowed: empty"):
            model.prepare(Conditions(PROMPT, "moss"))
    if not model.card.guidance:
        with pytest.raises(UnsupportedConditionError, match=r"guidance_scale: 2.5 .* allowed: 1"):
            model.prepare(Conditions(PROMPT, guidance_scale=2.5))
    assert "local" in model.card.positions


@pytest.mark.parametrize("case", [case for case in CASES if len(case.guidance_scales) > 1], ids=named)
@torch.inference_mode()
def test_a_branch_does_not_depend_on_whom_it_shares_a_batch_with(
    case: FamilyCase, families: Families
) -> None:
    """Though the branches' texts differ in length."""
    replica = replica_of(families.load(case), conditions(case, 5.0), case)
    crop, tile = initial_noise(1, *case.noise)[None], Rectangle(0, 0, *case.noise[1:])
    together = predict(replica, crop.expand(3, -1, -1, -1), 500, [tile] * 3, [1, 0, 1])
    for row, branch in enumerate([1, 0, 1]):
        alone = predict(replica, crop, 500, [tile], [branch])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if "flux" in case.name], ids=named)
@torch.inference_mode()
def test_global_positions_tell_tiles_apart(case: FamilyCase, families: Families) -> None:
    model, told = families.load(case), conditions(case, case.guidance_scales[-1])
    crops = initial_noise(1, *case.noise)[None].expand(3, -1, -1, -1)
    tiles = [
        Rectangle(0, 0, *case.noise[1:]),
        Rectangle(5, 16, *case.noise[1:]),
        Rectangle(0, 0, *case.noise[1:]),
    ]
    local, placed = (
        predict(replica_of(model, replace(told, positions=positions), case), crops, 500.0, tiles, [0] * 3)
        for positions in ("local", "global")
    )
    assert torch.allclose(local[0], local[1], atol=1e-6)
    assert torch.allclose(placed[0], local[0], atol=1e-5)
    assert torch.equal(placed[0], placed[2])
    assert (placed[1] - placed[0]).abs().max() > 1e-4


@pytest.mark.parametrize("case", CASES, ids=named)
def test_weights_of_half_the_width_paint_nearly_the_same(case: FamilyCase, tmp_path: Path) -> None:
    """As they are loaded on a GPU: every place where two widths meet is met here."""
    case.build(tmp_path / case.name)
    family = case.load(tmp_path / case.name, torch.device("cpu"))
    plan = GenerationPlan(9, case.noise[0], (StagePlan(one_tile(case), STEPS),), DecodePlan(tile_size=8))
    full, half = (
        make_picture(plan, _at(family, dtype).prepare(conditions(case, case.guidance_scales[-1])))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < (full.float() - half.float()).abs().mean() < 2


def _at(family: Family, dtype: torch.dtype) -> FamilyModel:
    family.pipe.to(dtype)
    return FamilyModel(family, FolderSettings(), "tiny")


def replica_of(model: LoadedModel, conditions: Conditions, case: FamilyCase) -> Replica:
    prepared = model.prepare(conditions)
    assert isinstance(prepared, PreparedFamily)
    return prepared.make_replica(StagePlan(one_tile(case), STEPS))


def make_picture(plan: GenerationPlan, prepared: PreparedModel, group: Group | None = None) -> Tensor:
    events = generate(plan, prepared, group=group)
    return torch.cat([event.rows for event in events if isinstance(event, Band)])
