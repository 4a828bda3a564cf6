"""LoRAs of the transformer families."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from tests.worker.adapters.families.transformers import CASES, NEGATIVE, PROMPT, FamilyCase
from tests.worker.engine.known_answer import begin, finish
from worker.adapters.add_ons import Lora
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import denoise
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan

WITHOUT = {"pixart-sigma"}  # diffusers has no loader for its LoRAs
AFFECTED = [replace(case, steps=2) for case in CASES if case.name not in WITHOUT]


def tiny_lora(pipe: DiffusionPipeline, folder: Path, seed: int) -> Path:
    """Of the transformer's attention; answers the file. `pipe` is spoilt."""
    torch.manual_seed(seed)
    attention = LoraConfig(
        r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False
    )
    pipe.transformer.add_adapter(attention)
    name = f"tiny-{seed}.safetensors"
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(folder, transformer_lora_layers=layers, weight_name=name)
    return folder / name


@pytest.mark.parametrize("case", AFFECTED, ids=lambda case: case.name)
def test_several_with_weights_equal_diffusers_own_pipeline(case: FamilyCase, tmp_path: Path) -> None:
    scale = case.guidance_scales[-1]
    files = [tiny_lora(case.build(tmp_path / "spoilt"), tmp_path, seed) for seed in (1, 2)]
    pipe = case.build(tmp_path / "tiny")
    for name, file in zip("ab", files, strict=True):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    theirs = case.ask(pipe, initial_noise(9, *case.noise), scale, "latent", case.steps)
    model = load_model(str(tmp_path / "tiny"), "cpu")
    bare = make_picture(case, model, scale)
    ours = make_picture(case, model, scale, Lora(files[0], 0.7), Lora(files[1], -0.4))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert (ours - bare).abs().max() > 1e-3
    assert torch.equal(make_picture(case, model, scale), bare)


def test_a_family_without_a_loader_refuses_them(tmp_path: Path) -> None:
    (case,) = [case for case in CASES if case.name in WITHOUT]
    case.build(tmp_path / "tiny")
    model = load_model(str(tmp_path / "tiny"), "cpu")
    with pytest.raises(UnsupportedConditionError, match=r"lora"):
        model.prepare(Conditions(PROMPT, loras=(Lora(tmp_path, 1.0),)))


def make_picture(case: FamilyCase, model: LoadedModel, scale: float, *loras: Lora) -> Tensor:
    """The latent of one tile."""
    _, height, width = case.noise
    plan = DenoisePlan(Plane(height, width), max(height, width), 0, 0, moving=False, seed=9)
    negative = NEGATIVE if case.negative_prompt else ""
    prepared = model.prepare(Conditions(PROMPT, negative, scale, loras=loras))
    ensemble, scheduler = begin(prepared, StagePlan(plan, case.steps))
    latent = initial_noise(9, *case.noise)
    return finish(denoise(latent, plan, ensemble, scheduler, torch.Generator()))
