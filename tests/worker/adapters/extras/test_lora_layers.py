"""Layers of FLUX.1 in its true size, whose maker's names diffusers reads for no other."""

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from worker.adapters.extras.lora_file import LoraScales
from worker.adapters.extras.lora_layers import LoraLayer, Target, find_targets, match_layers

WIDTH, RANK, ALPHA = 3072, 6, 3.0
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    with torch.device("meta"):
        return find_targets({"transformer": FluxTransformer2DModel(num_layers=1, num_single_layers=1)})


def layer(name: str, inner: int, out: int) -> Tensors:
    return {
        f"{name}.lora_down.weight": torch.randn(RANK, inner),
        f"{name}.lora_up.weight": torch.randn(out, RANK),
        f"{name}.alpha": torch.tensor(ALPHA),
    }


def change(tensors: Tensors, name: str) -> Tensor:
    return ALPHA / RANK * tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]


def lay(tensors: Tensors, targets: dict[str, Target]) -> dict[str, Tensor]:
    found: list[LoraLayer] = match_layers(tensors, LoraScales({}), targets, FluxPipeline)
    return {each.target.name: each.up @ each.down for each in found}


def test_q_k_v_and_the_perceptron_of_a_single_block_are_one(targets: dict[str, Target]) -> None:
    name = "lora_unet_single_blocks_0_linear1"
    tensors = layer(name, WIDTH, 7 * WIDTH)
    found = lay(tensors, targets)
    block = "single_transformer_blocks.0"
    names = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    torch.testing.assert_close(torch.cat([found[each] for each in names]), change(tensors, name))
    assert found.keys() == set(names)


def test_q_k_and_v_that_were_trained_apart(targets: dict[str, Target]) -> None:
    """sd-scripts' split_qkv writes each its share of the rank, and zeros elsewhere."""
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = layer(name, WIDTH, 3 * WIDTH)
    blocks = torch.block_diag(*[torch.ones(WIDTH, RANK // 3)] * 3)
    tensors[f"{name}.lora_up.weight"] *= blocks
    found = lay(tensors, targets)
    joined = torch.cat([found[f"transformer_blocks.0.attn.to_{each}"] for each in "qkv"])
    torch.testing.assert_close(joined, change(tensors, name))


def test_the_last_norms_scale_and_shift_have_changed_places(targets: dict[str, Target]) -> None:
    name = "lora_unet_final_layer_adaLN_modulation_1"
    tensors = layer(name, WIDTH, 2 * WIDTH)
    torch.testing.assert_close(lay(tensors, targets)["norm_out.linear"], change(tensors, name).roll(WIDTH, 0))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("transformer.transformer_blocks.0.attn.norm_q.weight", (128,)),  # of a control LoRA
        ("lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", (4096, RANK)),  # T5's
        ("lora_unet_double_blocks_9_img_attn_proj.lora_up.weight", (WIDTH, RANK)),
        ("lora_unet_single_blocks_0_linear1.dora_scale", (7 * WIDTH, 1)),
    ],
)
def test_what_is_left_over_is_refused(targets: dict[str, Target], key: str, shape: tuple[int, ...]) -> None:
    tensors = layer("lora_unet_single_blocks_0_linear1", WIDTH, 7 * WIDTH) | {key: torch.ones(shape)}
    with pytest.raises(ValueError, match=rf"1 of 4 keys .* the first is '{key}'"):
        lay(tensors, targets)


def test_a_layer_that_would_have_to_grow_is_refused(targets: dict[str, Target]) -> None:
    """As control LoRAs have it, whose pictures come in beside the latent."""
    tensors = layer("transformer.x_embedder", 128, WIDTH)
    with pytest.raises(ValueError, match=r"3 of 3 keys .*x_embedder"):
        lay(tensors, targets)
