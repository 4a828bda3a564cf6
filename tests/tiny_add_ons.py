"""Tiny random add-ons for the tiny UNet pipelines, built where a test needs them."""

from pathlib import Path

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

Pipe = StableDiffusionPipeline | StableDiffusionXLPipeline
PROJECTED = 16


def tiny_lora(build_folder: Path, pipe: Pipe, *, seed: int) -> Path:
    """Of the UNet's and the first text encoder's attention; answers the file. `pipe` is spoilt."""
    torch.manual_seed(seed)
    attention = LoraConfig(
        r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
    )
    text = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipe.unet.add_adapter(attention)
    pipe.text_encoder.add_adapter(text)
    layers = {
        "unet_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet)),
        "text_encoder_lora_layers": convert_state_dict_to_diffusers(
            get_peft_model_state_dict(pipe.text_encoder)
        ),
    }
    type(pipe).save_lora_weights(build_folder, weight_name=f"tiny-{seed}.safetensors", **layers)
    return build_folder / f"tiny-{seed}.safetensors"


def tiny_control_net(folder: Path, pipe: Pipe) -> Path:
    """Has an effect from the start, unlike one that is yet to be trained."""
    torch.manual_seed(5)
    network = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8, 8))
    for part in (
        network.controlnet_down_blocks,
        network.controlnet_mid_block,
        network.controlnet_cond_embedding,
    ):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.3)
    network.save_pretrained(folder)
    return folder


def tiny_ip_adapter(folder: Path, pipe: Pipe) -> Path:
    """With its image encoder."""
    torch.manual_seed(6)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8, projection_dim=PROJECTED,
        )
    )  # fmt: skip
    encoder.save_pretrained(folder / "image_encoder")
    save_file(_ip_weights(pipe), folder / "tiny.safetensors")
    return folder


def _ip_weights(pipe: Pipe) -> dict[str, Tensor]:
    """As original checkpoints name them: cross-attentions count 1, 3, 5 ... in the UNet's order."""
    width, tokens = pipe.unet.config.cross_attention_dim, 4
    weights = {
        "image_proj.proj.weight": torch.randn(width * tokens, PROJECTED) * 0.3,
        "image_proj.proj.bias": torch.randn(width * tokens) * 0.3,
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    for index, name in enumerate(pipe.unet.attn_processors):
        if "attn2" in name:
            query = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q
            for kind in ("k", "v"):
                weights[f"ip_adapter.{index}.to_{kind}_ip.weight"] = (
                    torch.randn(query.out_features, width) * 0.2
                )
    return weights
