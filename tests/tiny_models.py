"""Tiny random models of true architecture, built where a test needs them."""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tiny_vae(*, attention: bool = True) -> AutoencoderKL:
    """Every part that a decoder has: shortcut convolutions, attention, three sizes."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=attention,
    ).eval()


def tiny_autoencoder(channels: int = 4) -> AutoencoderTiny:
    torch.manual_seed(2)
    return AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(2, 2, 2, 1),
    ).eval()


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=16,
    )


def tiny_text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def tiny_stable_diffusion(folder: Path, *, predicts: str = "epsilon") -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of random weights, saved to `folder`; 2.1's kind predicts v."""
    tokenizer = tiny_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(tiny_text_config(tokenizer))
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, prediction_type=predicts)
    pipe = StableDiffusionPipeline(
        tiny_vae(), text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe


def shallow_unet() -> UNet2DConditionModel:
    """Of Stable Diffusion, with three blocks of each kind: each takes seconds to be compiled in all its forms."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def tiny_stable_diffusion_xl(
    folder: Path, *, consistency: bool = False, few_steps: bool = False
) -> StableDiffusionXLPipeline:
    """A StableDiffusionXLPipeline of random weights, saved to `folder`.

    Args:
        consistency: as LCM has it.
        few_steps: as turbo has it.
    """
    tokenizer = tiny_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    torch.manual_seed(0)
    config = tiny_text_config(tokenizer)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
        time_cond_proj_dim=16 if consistency else None,
    )
    if consistency:
        scheduler = LCMScheduler(**SCHEDULE)
    elif few_steps:
        scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    else:
        scheduler = EulerDiscreteScheduler(**SCHEDULE)
    pipe = StableDiffusionXLPipeline(
        tiny_vae(), CLIPTextModel(config), CLIPTextModelWithProjection(config), tokenizer, tokenizer, unet,
        scheduler, add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe
