"""Latents from text states by a diffusers scheduler; both variants of the model in one loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from training.diffusion import SCHEDULE
from training.progress import half_precision

Scheduler = DPMSolverMultistepScheduler | DDIMScheduler


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant is sampled."""

    build_scheduler: Callable[[], Scheduler]
    steps: int
    guidance_scale: float


def build_few_step_scheduler() -> DDIMScheduler:
    """For the distilled denoiser, which learned DDIM's own steps; where their number divides 1,000 the last ends without noise."""
    return DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)


def build_full_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ for the undistilled denoiser; the last sigmas are clipped for the zero terminal SNR."""
    return DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing")


FEW_STEPS = Recipe(build_few_step_scheduler, steps=5, guidance_scale=1.0)
FULL = Recipe(build_full_scheduler, steps=20, guidance_scale=3.0)
PROTOTYPE = Recipe(build_full_scheduler, steps=20, guidance_scale=3.0)


def list_timesteps(recipe: Recipe, device: torch.device) -> Tensor:
    """Of its steps, (steps,)."""
    scheduler = recipe.build_scheduler()
    scheduler.set_timesteps(recipe.steps, device=device)
    return scheduler.timesteps


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel, recipe: Recipe, text: Tensor, empty: Tensor, side: int, seed: int
) -> Tensor:
    """Latents for each row of text states.

    Args:
        text: (B, tokens, width).
        empty: (1, tokens, width), the states of the empty caption.
        side: of the latent, in latent pixels.

    Returns:
        (B, C, side, side), scaled as the denoiser knows them.
    """
    generator = torch.Generator(text.device).manual_seed(seed)
    shape = (len(text), unet.config["in_channels"], side, side)
    noise = torch.randn(shape, generator=generator, device=text.device)
    return denoise(unet, recipe, noise, text, empty)


def denoise(
    unet: Callable[..., tuple[Tensor]],
    recipe: Recipe,
    noise: Tensor,
    text: Tensor,
    empty: Tensor,
    learned: int = 0,
    first: int | None = None,
) -> Tensor:
    """From noise to latents; gradients flow through the last `learned` steps. With `first`, only so many steps."""
    latent, scheduler = noise, recipe.build_scheduler()
    scheduler.set_timesteps(recipe.steps, device=text.device)
    # DDIM's timestep is annotated as an int, and what either returns not at all.
    advance = cast(
        Callable[..., tuple[Tensor]],
        scheduler.step,  # pyright: ignore[reportUnknownMemberType]
    )
    for index, timestep in enumerate(scheduler.timesteps[:first]):
        with torch.set_grad_enabled(index >= recipe.steps - learned):
            prediction = _predict(
                unet, latent, timestep.expand(len(latent)), text, empty, recipe.guidance_scale
            )
            latent = advance(prediction, timestep, latent, return_dict=False)[0]
    return latent


def _predict(
    unet: Callable[..., tuple[Tensor]],
    latent: Tensor,
    timestep: Tensor,
    text: Tensor,
    empty: Tensor,
    guidance_scale: float,
) -> Tensor:
    with half_precision(latent.device):
        if guidance_scale == 1.0:
            return unet(latent, timestep, text, return_dict=False)[0].float()
        both = torch.cat([empty.expand_as(text), text])
        plain, guided = (
            unet(latent.repeat(2, 1, 1, 1), timestep.repeat(2), both, return_dict=False)[0].float().chunk(2)
        )
    return plain + guidance_scale * (guided - plain)
