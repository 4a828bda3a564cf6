"""Tiny random diffusion transformers of true architecture, built where a test needs them."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny_autoencoders import tiny_kl
from tests.tiny_models import tiny_tokenizer

WIDTH = 32  # of all text states


def tiny_stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    tokenizer = tiny_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    torch.manual_seed(0)
    clip = tiny_clip_config(len(tokenizer), width=WIDTH // 2)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    pipe = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), tiny_kl(16),
        CLIPTextModelWithProjection(clip), tokenizer,
        CLIPTextModelWithProjection(clip), tokenizer,
        tiny_t5(), tiny_t5_tokenizer(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe


def tiny_flux(folder: Path, *, distilled_guidance: bool) -> FluxPipeline:
    """Guidance embedded and shifted by resolution as in FLUX.1-dev, or neither as in FLUX.1-schnell."""
    tokenizer = tiny_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=distilled_guidance,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if distilled_guidance else 1.0, use_dynamic_shifting=distilled_guidance
    )
    text_encoder = CLIPTextModel(tiny_clip_config(len(tokenizer), width=WIDTH))
    pipe = FluxPipeline(
        scheduler, tiny_kl(4), text_encoder, tokenizer, tiny_t5(), tiny_t5_tokenizer(), transformer
    )
    pipe.save_pretrained(folder)
    return pipe


def tiny_clip_config(words: int, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=37,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def tiny_t5() -> T5EncoderModel:
    config = T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval()


def tiny_t5_tokenizer() -> T5Tokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters]
    return T5Tokenizer(
        vocab=[(piece, 0.0 if piece[0] == "<" else -2.0) for piece in pieces],
        extra_ids=0,
        model_max_length=512,
    )
