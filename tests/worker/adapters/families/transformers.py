"""The transformer families: how each is built, tiny, and how its own diffusers pipeline is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from tests.tiny_transformers import (
    tiny_flux,
    tiny_flux_2,
    tiny_flux_2_klein,
    tiny_flux_2_klein_few,
    tiny_flux_schnell,
    tiny_pixart_sigma,
    tiny_qwen_image,
    tiny_sana,
    tiny_stable_diffusion_3,
    tiny_z_image,
)
from worker.adapters.families import flux, flux_2, pixart_sigma, qwen_image, sana, stable_diffusion_3, z_image
from worker.adapters.family import Family

# Z-Image fills text up to a multiple of 32 tokens, so only a long prompt is longer than a short one.
PROMPT, NEGATIVE, STEPS = "a brick wall in the evening light", "moss", 4


@dataclass(frozen=True, slots=True)
class FamilyCase:
    """One family.

    Args:
        load: the adapter's.
        build: saves a tiny pipeline to a folder.
        noise: shape of a latent, (C, h, w), that one tile covers; not square, so that axes cannot be mistaken.
        ask: (pipeline, noise (C, h, w), our guidance scale, diffusers' output type, steps) -> latent (C, h, w)
            or picture (H, W, 3) in [0, 1].
    """

    name: str
    load: Callable[[Path, torch.device], Family]
    build: Callable[[Path], DiffusionPipeline]
    noise: tuple[int, int, int]
    ask: Callable[..., Tensor]
    guidance_scales: tuple[float, ...] = (1.0, 5.0)
    negative_prompt: str = NEGATIVE
    steps: int = STEPS


def ask_stable_diffusion_3(
    pipe: DiffusionPipeline, noise: Tensor, scale: float, output: str, steps: int = STEPS
) -> Tensor:
    height_px, width_px = (side * pipe.vae_scale_factor for side in noise.shape[1:])
    images = pipe(
        PROMPT, negative_prompt=NEGATIVE, latents=noise[None], num_inference_steps=steps,
        guidance_scale=scale, height=height_px, width=width_px, output_type=output,
    ).images  # fmt: skip
    return torch.as_tensor(images[0])


def ask_pixart_or_sana(
    pipe: DiffusionPipeline, noise: Tensor, scale: float, output: str, steps: int = STEPS
) -> Tensor:
    height_px, width_px = (side * pipe.vae_scale_factor for side in noise.shape[1:])
    images = pipe(
        PROMPT, negative_prompt=NEGATIVE, latents=noise[None], num_inference_steps=steps,
        guidance_scale=scale, height=height_px, width=width_px, output_type=output,
        use_resolution_binning=False, clean_caption=False,
    ).images  # fmt: skip
    return torch.as_tensor(images[0])


def ask_qwen_image(
    pipe: DiffusionPipeline, noise: Tensor, scale: float, output: str, steps: int = STEPS
) -> Tensor:
    channels, height, width = noise.shape
    images = pipe(
        PROMPT, negative_prompt=NEGATIVE, latents=pipe._pack_latents(noise[None], 1, channels, height, width),
        num_inference_steps=steps, true_cfg_scale=scale, height=height * pipe.vae_scale_factor,
        width=width * pipe.vae_scale_factor, output_type=output,
    ).images  # fmt: skip
    if output == "latent":
        return pipe._unpack_latents(images, height, width, 1)[0, :, 0]
    return torch.as_tensor(images[0])


def ask_flux(pipe: DiffusionPipeline, noise: Tensor, scale: float, output: str, steps: int = STEPS) -> Tensor:
    channels, height, width = noise.shape
    images = pipe(
        PROMPT, latents=pipe._pack_latents(noise[None], 1, channels, height, width),
        num_inference_steps=steps, guidance_scale=scale, height=height * pipe.vae_scale_factor,
        width=width * pipe.vae_scale_factor, output_type=output,
        max_sequence_length=512 if pipe.transformer.config.guidance_embeds else 256,
    ).images  # fmt: skip
    return (
        pipe._unpack_latents(images, height, width, 1)[0]
        if output == "latent"
        else torch.as_tensor(images[0])
    )


def ask_z_image(
    pipe: DiffusionPipeline, noise: Tensor, scale: float, output: str, steps: int = STEPS
) -> Tensor:
    height_px, width_px = (side * pipe.vae_scale_factor for side in noise.shape[1:])
    images = pipe(
        PROMPT, negative_prompt=NEGATIVE, latents=noise[None], num_inference_steps=steps,
        guidance_scale=scale - 1.0, height=height_px, width=width_px, output_type=output,
    ).images  # fmt: skip
    return torch.as_tensor(images[0])


def ask_flux_2(
    pipe: DiffusionPipeline, noise: Tensor, scale: float, output: str, steps: int = STEPS
) -> Tensor:
    """Dev answers with packed latents, klein with unpacked ones that are no longer normalised."""
    height_px, width_px = (side * pipe.vae_scale_factor * 2 for side in noise.shape[1:])
    images = pipe(
        prompt=PROMPT, latents=noise[None], num_inference_steps=steps, guidance_scale=scale,
        height=height_px, width=width_px, output_type=output,
    ).images  # fmt: skip
    if output != "latent":
        return torch.as_tensor(images[0])
    if "is_distilled" not in pipe.config:
        return images[0].T.unflatten(-1, noise.shape[-2:])
    mean, variance = (each[:, None, None] for each in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
    return (pipe._patchify_latents(images)[0] - mean) / torch.sqrt(variance + pipe.vae.config.batch_norm_eps)


CASES = (
    FamilyCase(
        "stable-diffusion-3",
        stable_diffusion_3.load,
        tiny_stable_diffusion_3,
        (16, 16, 12),
        ask_stable_diffusion_3,
    ),
    FamilyCase("flux-dev", flux.load, tiny_flux, (4, 16, 12), ask_flux, (3.5,), ""),
    FamilyCase("flux-schnell", flux.load, tiny_flux_schnell, (4, 16, 12), ask_flux, (1.0,), ""),
    FamilyCase("pixart-sigma", pixart_sigma.load, tiny_pixart_sigma, (4, 16, 12), ask_pixart_or_sana),
    FamilyCase("sana", sana.load, tiny_sana, (8, 16, 8), ask_pixart_or_sana),
    FamilyCase("qwen-image", qwen_image.load, tiny_qwen_image, (4, 16, 12), ask_qwen_image),
    FamilyCase("z-image", z_image.load, tiny_z_image, (4, 16, 12), ask_z_image),
    FamilyCase("flux-2", flux_2.load, tiny_flux_2, (16, 8, 6), ask_flux_2, (4.0,), ""),
    FamilyCase("flux-2-klein", flux_2.load, tiny_flux_2_klein, (16, 8, 6), ask_flux_2, negative_prompt=""),
    FamilyCase("flux-2-klein-few", flux_2.load, tiny_flux_2_klein_few, (16, 8, 6), ask_flux_2, (1.0,), ""),
)
