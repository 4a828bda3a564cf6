"""ControlNets of every configuration that diffusers reads make its picture, or are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import StableDiffusionXLControlNetPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conformance.summary import MATRIX
from tests.worker.adapters.families.test_unets import generate_one_tile
from tests.worker.adapters.families.unets import ADD_ON_CASES, NOISE, PROMPT, SEED, UNetCase, ask
from worker.adapters.add_ons import Control, to_pil
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.noise import initial_noise

GUIDED = ("moss", 5.0)
PICTURE = torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
PLAIN_DOWN = ("DownBlock2D", "DownBlock2D")
HEEDED: dict[str, dict[str, Any]] = {
    "as the UNet": {},
    "BGR": {"controlnet_conditioning_channel_order": "bgr"},
    "other channels inside": {"conditioning_embedding_out_channels": (8, 4, 12)},
    "cosines last": {"flip_sin_to_cos": False},
    "clock shifted": {"freq_shift": 1},
    "other activation": {"act_fn": "gelu"},
    "other groups": {"norm_num_groups": 2, "norm_eps": 1e-3},
    "middle scaled": {"mid_block_scale_factor": 3.0},
    "time as scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "cross-attention only": {"only_cross_attention": True},
    "attention upcast": {"upcast_attention": True},
    "other heads": {"attention_head_dim": 8},
    "convolutions around attention": {"use_linear_projection": False},
    "linear layers around attention": {"use_linear_projection": True},
    "fewer transformer blocks": {"transformer_layers_per_block": 1},
    "no attention": {"down_block_types": PLAIN_DOWN, "mid_block_type": "UNetMidBlock2D"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "control of four channels": ({"conditioning_channels": 4}, "conditioning_channels 4; supported: 3"),
    "control of one channel": ({"conditioning_channels": 1}, "conditioning_channels 1; supported: 3"),
    "pooled": ({"global_pool_conditions": True}, "global_pool_conditions True; supported: False"),
    "classes as times": ({"class_embed_type": "timestep"}, "class_embed_type timestep; supported: None"),
    "classes": ({"num_class_embeds": 3}, "num_class_embeds 3; supported: None"),
    "more layers": ({"layers_per_block": 2}, "its layers_per_block is 2, this model's is 1"),
    "latent of nine channels": ({"in_channels": 9}, "its in_channels is 9, this model's is 4"),
    "wider": ({"block_out_channels": (8, 32)}, r"its block_out_channels is \[8, 32\]"),
    "wider text": ({"cross_attention_dim": 48}, "its cross_attention_dim is 48"),
    "pixels of another size": (
        {"conditioning_embedding_out_channels": (4, 8, 8, 8)},
        "takes 8 px for each latent pixel, this model has 4",
    ),
    "another time": ({"addition_embed_type": "text", "addition_embed_type_num_heads": 4}, "its addition_embed_type is text"),
}  # fmt: skip


def drop(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("controlnet_mid_block")}


def add(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"control_add_embedding.weight": torch.ones(2)}


def widen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"controlnet_mid_block.weight": torch.ones(9, 9, 1, 1)}


SPOILED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing weights": (drop, r"has no controlnet_mid_block\.bias, one of 2 keys"),
    "unknown weights": (add, r"has the unknown control_add_embedding\.weight, one of 1 keys"),
    "weights of another shape": (
        widen,
        r"cannot be loaded as a ControlNetModel: .*controlnet_mid_block\.weight",
    ),
}
KINDS = ("ControlNetUnionModel", "ControlNetXSAdapter", "SD3ControlNetModel", "FluxControlNetModel", "T2IAdapter", "UNet2DConditionModel")  # fmt: skip


class Built:
    """A model, and diffusers' own pipeline of it."""

    def __init__(self, case: UNetCase, folder: Path) -> None:
        self.pipe: DiffusionPipeline = case.build(folder)
        self.model: LoadedModel = load_model(str(folder), "cpu")
        self.is_xl = "xl" in case.name

    def write(self, folder: Path, **fields: object) -> Path:
        torch.manual_seed(5)
        first = ControlNetModel.from_unet(self.pipe.unet, conditioning_embedding_out_channels=(4, 8, 8))
        known = {key: value for key, value in first.config.items() if key != "_use_default_values"}
        network = ControlNetModel.from_config(known | fields)
        assert all(network.config[field] == value for field, value in fields.items())
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.3)
        network.save_pretrained(folder)
        return folder

    def theirs(self, folder: Path) -> Tensor:
        network, told = ControlNetModel.from_pretrained(folder), self.pipe.components
        if self.is_xl:
            pipe = StableDiffusionXLControlNetPipeline(**told, controlnet=network)
        else:
            pipe = StableDiffusionControlNetPipeline(
                **told, controlnet=network, requires_safety_checker=False
            )
        return ask(
            pipe, initial_noise(SEED, *NOISE), GUIDED, image=to_pil(PICTURE), height=64, width=64,
            controlnet_conditioning_scale=0.8,
        )  # fmt: skip

    def ours(self, folder: Path | None) -> Tensor:
        control = Control(folder, PICTURE, 0.8) if folder else None
        return generate_one_tile(self.model.prepare(Conditions(PROMPT, *GUIDED, control=control)))


@pytest.fixture(scope="module", params=ADD_ON_CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(request.param, tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("name", HEEDED)
def test_a_configuration_that_is_heeded(built: Built, name: str, tmp_path: Path) -> None:
    folder = built.write(tmp_path / "net", **HEEDED[name])
    ours = built.ours(folder)
    torch.testing.assert_close(ours, built.theirs(folder), rtol=1e-4, atol=2e-4)
    assert (ours - built.ours(None)).abs().max() > 1e-2


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_is_refused(built: Built, name: str, tmp_path: Path) -> None:
    fields, says = REFUSED[name]
    with pytest.raises(ModelFolderError, match=says):
        built.ours(built.write(tmp_path / "net", **fields))


@pytest.mark.parametrize("name", SPOILED)
def test_weights_that_do_not_fit_their_configuration(built: Built, name: str, tmp_path: Path) -> None:
    spoil, says = SPOILED[name]
    file = built.write(tmp_path / "net") / "diffusion_pytorch_model.safetensors"
    save_file(spoil(load_file(file)), file, {"format": "pt"})
    with pytest.raises(ModelFolderError, match=says) as caught:
        built.ours(file.parent)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_another_kind(built: Built, kind: str, tmp_path: Path) -> None:
    file = built.write(tmp_path / "net") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": kind}))
    with pytest.raises(ModelFolderError, match=f"net holds a {kind}; this model takes a ControlNetModel"):
        built.ours(file.parent)


def test_the_matrix_says_how_many_cases_it_holds(record_property: Callable[[str, object], None]) -> None:
    heeded, refused = len(HEEDED) + 1, len(REFUSED) + len(SPOILED) + len(KINDS)
    summary = f"ControlNets: {heeded} kinds of folder equal diffusers, {refused} are refused, each for {len(ADD_ON_CASES)} families"
    record_property(MATRIX, summary)
    assert not HEEDED.keys() & REFUSED.keys()
