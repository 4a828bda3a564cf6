"""Compiled blocks and recorded forwards attend alike; what cannot attend is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.fx.experimental.proxy_tensor import make_fx

from api_schemas.folder_settings import FolderSettings
from tests.tiny_models import shallow_unet, tiny_stable_diffusion
from tests.worker.adapters.attention.tiled import (
    begin,
    conditions,
    draw,
    find_attention,
    plan_tiles,
    save_tiny,
    start,
)
from worker.adapters.acceleration import compile_blocks, find_denoiser
from worker.adapters.attention.layers import AttentionLayers
from worker.adapters.attention.replica import make_attentive
from worker.adapters.attention.rotary import find_rotary
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.families import flux, stable_diffusion
from worker.adapters.family import Family
from worker.adapters.family_model import FamilyModel
from worker.adapters.graphs import replay_forward
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.ensemble import Replica
from worker.engine.plan import StagePlan

TOLD = Conditions("brick wall", guidance_scale=1.0, attention="conductor")


def attend_with(family: Family, layers: AttentionLayers) -> Callable[[StagePlan], Replica]:
    """As a loaded model does with layers of its own."""
    encoded, patch = family.encode(TOLD), family.shape.alignment_px // family.shape.scale
    rotary = find_rotary(find_denoiser(family.pipe), patch, "local")
    return lambda stage: make_attentive(stage, encoded, encoded, layers, patch, rotary)


def test_compiled_blocks_attend_alike_and_are_compiled_once(tmp_path: Path) -> None:
    """For batches of any size."""
    folder = tmp_path / "shallow"
    pipe = tiny_stable_diffusion(folder)
    pipe.register_modules(unet=shallow_unet())
    pipe.save_pretrained(folder)
    model, family = load_model(str(folder), "cpu"), stable_diffusion.load(folder, torch.device("cpu"))
    prepared, plan, latent = model.prepare(TOLD), plan_tiles(model, neighbours=True), draw(model)
    make_replica = attend_with(family, AttentionLayers(find_denoiser(family.pipe), compiled=True))
    torch.compiler.reset()
    compile_blocks(find_denoiser(family.pipe), backend="eager")
    counts: list[int] = []
    for modules in (3, 2):
        stage = StagePlan(plan, 4, modules=modules)
        scheduler = prepared.make_scheduler(stage)
        for attends in (True, False, True):  # each form of a block is told from the others
            found = start(make_replica(stage), scheduler, stage, attends=attends)(latent)
            expected = begin(prepared, plan, modules=modules, attends=attends)(latent)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1]


@torch.inference_mode()
def test_blocks_are_compiled_no_more_often_for_being_able_to_share() -> None:
    """Six blocks of one shape are one code, as without layers of ours."""

    def count_graphs(*, shares: bool) -> int:
        shape = {
            "block_out_channels": (32, 32),
            "layers_per_block": 2,
            "cross_attention_dim": 8,
            "norm_num_groups": 8,
        }
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        }
        network = UNet2DConditionModel(sample_size=8, attention_head_dim=4, **shape, **blocks)
        if shares:
            AttentionLayers(network, compiled=True)
        torch.compiler.reset()
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        compile_blocks(network, backend="eager")
        network(torch.randn(2, 4, 8, 8), torch.tensor(7.0), torch.randn(2, 3, 8))
        return torch._dynamo.utils.counters["stats"]["unique_graphs"] - before

    assert count_graphs(shares=True) == count_graphs(shares=False)


class Recorded:
    """What a GPU does: a recording is played back without any of our code, on the tensors that it was made with."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.count += 1
        output = call()
        traced = make_fx(lambda: call()[0])()
        return lambda: output[0].copy_(traced()), output


def test_recorded_forwards_read_what_was_written_last(
    models: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    """Of conductors of two sizes, in turns."""
    model, record = models("flux-dev"), Recorded()
    plan = plan_tiles(model, neighbours=True)
    stages = [
        StagePlan(each, 4, modules=3)
        for each in (plan, replace(plan, attention=replace(find_attention(plan), conductor=(24, 8))))
    ]
    prepared = model.prepare(TOLD)
    plain = [begin(prepared, stage.denoise, modules=3) for stage in stages]
    family = flux.load(save_tiny(tmp_path, "flux-dev"), torch.device("cpu"))
    layers = AttentionLayers(find_denoiser(family.pipe), recorded=True)
    make_replica = attend_with(family, layers)
    replay_forward(find_denoiser(family.pipe), record, layers.describe)
    replayed = [start(make_replica(stage), prepared.make_scheduler(stage), stage) for stage in stages]
    for seed in (1, 2):
        for one, two in zip(plain, replayed, strict=True):
            torch.testing.assert_close(two(draw(model, seed)), one(draw(model, seed)), rtol=1e-4, atol=1e-5)
        # What each conductor and a neighbourhood write, and what tiles beside each conductor read.
        assert record.count == 5


def test_layers_that_wait_in_main_memory_do_not_attend(tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    family = stable_diffusion.load(tmp_path / "tiny", torch.device("cpu"))
    model = FamilyModel(family, FolderSettings(offload="model"), "tiny")
    assert model.card.attention == ["off"]
    with pytest.raises(
        UnsupportedConditionError, match=r"advanced.attention: 'conductor' .* allowed: auto, off"
    ):
        model.prepare(Conditions("", attention="conductor"))


def test_layers_that_do_not_call_pytorchs_attention_are_refused(tmp_path: Path) -> None:
    """As another backend of diffusers' would be: here, diffusers' attention without a fused kernel."""
    family = stable_diffusion.load(save_tiny(tmp_path, "stable-diffusion"), torch.device("cpu"))
    family.pipe.unet.set_attn_processor(AttnProcessor())
    model = FamilyModel(family, FolderSettings(), "tiny")
    with pytest.raises(
        UnsupportedConditionError, match=r"advanced.attention: 4 of 4 attention .* allowed: off"
    ):
        begin(model.prepare(conditions(model)), plan_tiles(model))(draw(model))
