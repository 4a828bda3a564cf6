"""Every layout of a LoRA file that people bring changes the picture as its formula says, or is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conformance.fused_layers import tie
from tests.conformance.lora_cases import ATTENTIONS, UNET_CASES, Case
from tests.conformance.lora_files import Layer, Layout, changed, draw, with_scale_inside, write
from tests.conformance.lora_refusals import REFUSALS, SPOILED_LAYERS, Refusal
from tests.conformance.summary import MATRIX
from tests.conformance.transformer_lora_cases import TRANSFORMER_CASES
from tests.worker.adapters.extras.test_transformer_loras import make_picture
from tests.worker.adapters.families.test_unets import generate_one_tile
from tests.worker.adapters.families.transformers import FamilyCase
from tests.worker.adapters.families.unets import ADD_ON_CASES, NOISE, PROMPT, SEED, UNetCase, ask
from worker.adapters.add_ons import Lora
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.noise import initial_noise

GUIDED = ("moss", 5.0)
STEPS = 2  # each applies all weights
UNETS = [(case, each) for case in ADD_ON_CASES for each in UNET_CASES[case.name]]


@dataclass(frozen=True)
class Built:
    """
    Args:
        theirs: the latent that diffusers' own pipeline makes of what its weights are now.
        ours: the same of the model with LoRAs.
    """

    pipe: DiffusionPipeline
    theirs: Callable[[], Tensor]
    ours: Callable[..., Tensor]
    bare: Tensor


def build(case: UNetCase | FamilyCase, folder: Path) -> Built:
    pipe, model = case.build(folder), load_model(str(folder), "cpu")
    if isinstance(case, UNetCase):
        noise = initial_noise(SEED, *NOISE)
        return Built(
            pipe,
            lambda: ask(pipe, noise, GUIDED, steps=STEPS),
            lambda *loras: make(model, *loras),
            make(model),
        )
    noise, scale, case = initial_noise(9, *case.noise), case.guidance_scales[-1], replace(case, steps=STEPS)
    return Built(
        pipe,
        lambda: case.ask(pipe, noise, scale, "latent", STEPS),
        lambda *loras: make_picture(case, model, scale, *loras),
        make_picture(case, model, scale),
    )


def make(model: LoadedModel, *loras: Lora) -> Tensor:
    return generate_one_tile(model.prepare(Conditions(PROMPT, *GUIDED, loras=loras)), steps=STEPS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[UNetCase | FamilyCase], Built]:
    built: dict[str, Built] = {}

    def find(case: UNetCase | FamilyCase) -> Built:
        if case.name not in built:
            built[case.name] = build(case, tmp_path_factory.mktemp("models") / "tiny")
        return built[case.name]

    return find


@pytest.fixture
def plain(models: Callable[[UNetCase | FamilyCase], Built]) -> Built:
    return models(ADD_ON_CASES[0])


def draw_layers(pipe: DiffusionPipeline, case: Case, seed: int = 3) -> list[Layer]:
    layers = tie(draw(pipe, case.layers, case.kind, seed), case.tied)
    return layers if case.layout.has_alpha else [with_scale_inside(layer) for layer in layers]


@pytest.mark.parametrize(
    ("family", "case"),
    [pytest.param(*each, id=f"{each[0].name}: {each[1].name}") for each in (*UNETS, *TRANSFORMER_CASES)],
)
def test_a_lora_changes_weights_as_its_formula_says(
    models: Callable[[UNetCase | FamilyCase], Built],
    family: UNetCase | FamilyCase,
    case: Case,
    tmp_path: Path,
) -> None:
    built = models(family)
    layers = draw_layers(built.pipe, case)
    with changed(built.pipe, layers, case.strength):
        theirs = built.theirs()
    ours = built.ours(Lora(write(tmp_path / "lora", case.layout, layers), case.strength))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
    assert (ours - built.bare).abs().max() > 1e-2


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_what_would_have_no_effect_is_refused_and_leaves_no_trace(
    plain: Built, refusal: Refusal, tmp_path: Path
) -> None:
    layers = draw(plain.pipe, SPOILED_LAYERS, refusal.kind)
    folder = write(tmp_path / "lora", Layout(refusal.layout), layers)
    file = folder / "adapter_model.safetensors"
    save_file(refusal.spoil(load_file(file)), file, dict(refusal.header) or None)
    if refusal.config:
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1, **refusal.config}))
    with pytest.raises(ModelFolderError, match=refusal.says) as caught:
        plain.ours(Lora(folder))
    assert len(str(caught.value)) < 500  # more is not told to clients
    assert torch.equal(plain.ours(), plain.bare)


def test_two_layouts_together(plain: Built, tmp_path: Path) -> None:
    cases = {case.name: case for case in UNET_CASES[ADD_ON_CASES[0].name]}
    first, second = cases["kohya"], cases["diffusers, alphas in the header"]
    layers, others = draw_layers(plain.pipe, first), draw_layers(plain.pipe, second, seed=4)
    with changed(plain.pipe, layers, 0.7), changed(plain.pipe, others, -0.4):
        theirs = plain.theirs()
    files = [write(tmp_path / "a", first.layout, layers), write(tmp_path / "b", second.layout, others)]
    ours = plain.ours(Lora(files[0], 0.7), Lora(files[1], -0.4))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_one_of_weight_0_is_none(plain: Built, kind: str, tmp_path: Path) -> None:
    """DoRA's magnitudes too, and beside another."""
    layout = UNET_CASES[ADD_ON_CASES[0].name][0].layout
    files = [write(tmp_path / str(seed), layout, draw(plain.pipe, ATTENTIONS, kind, seed)) for seed in (1, 2)]
    assert torch.equal(plain.ours(Lora(files[0], 0.0)), plain.bare)
    assert torch.equal(plain.ours(Lora(files[0], 0.0), Lora(files[1])), plain.ours(Lora(files[1])))


def test_a_peft_file_is_listed_with_its_configuration(plain: Built, tmp_path: Path) -> None:
    """SingleRank it would be of another strength, and a file's digest does not cover its neighbour."""
    (case,) = [case for case in UNET_CASES[ADD_ON_CASES[0].name] if case.name == "peft"]
    folder = write(tmp_path / "lora", case.layout, draw_layers(plain.pipe, case))
    with pytest.raises(
        ModelFolderError, match=r"adapter_config\.json beside it .* supported: both, listed as"
    ):
        plain.ours(Lora(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_half_precision(plain: Built, dtype: torch.dtype, tmp_path: Path) -> None:
    case = UNET_CASES[ADD_ON_CASES[0].name][0]
    layers = draw(plain.pipe, case.layers)
    folder = write(tmp_path / "lora", case.layout, layers)
    file = folder / "adapter_model.safetensors"
    short = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    save_file(short, file)
    ours = plain.ours(Lora(folder))
    save_file({key: tensor.float() for key, tensor in short.items()}, file)
    assert torch.equal(ours, plain.ours(Lora(folder)))


def test_the_matrix_says_how_many_cases_it_holds(record_property: Callable[[str, object], None]) -> None:
    applied, refused = len(UNETS) + len(TRANSFORMER_CASES), len(REFUSALS)
    summary = (
        f"LoRA files: {applied} cells of family and layout take effect, {refused} kinds of file are refused"
    )
    record_property(MATRIX, summary)
    assert len({(family.name, case.name) for family, case in (*UNETS, *TRANSFORMER_CASES)}) == applied
