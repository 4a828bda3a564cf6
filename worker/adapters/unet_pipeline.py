"""What the configurations of a folder with a UNet determine: shape, defaults, embedded guidance."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import SchedulerUse
from worker.engine.plan import StagePlan

_USUAL_SIDE = 64  # of Stable Diffusion 1, where a folder states none

UNetPipeline = StableDiffusionPipeline | StableDiffusionXLPipeline


def is_guided(pipe: UNetPipeline, scale: float) -> bool:
    """Whether a tile takes two predictions: not where guidance was distilled into the UNet."""
    return scale != 1.0 and pipe.unet.config.time_cond_proj_dim is None


def embed_guidance_scale(pipe: UNetPipeline, scale: float) -> Tensor | None:
    """The UNet's `timestep_cond`, for latent consistency models (Luo et al. 2023, section 4.2)."""
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return None
    embedded = pipe.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), embedding_dim=width)
    return embedded.to(pipe.device, pipe.unet.dtype)


def read_shape(pipe: UNetPipeline) -> Shape:
    unet, scale = pipe.unet.config, pipe.vae_scale_factor
    channels = cast(int, pipe.vae.config.latent_channels)  # pyright: ignore[reportUnknownMemberType]
    alignment_px = scale * 2 ** (len(unet.block_out_channels) - 1)
    side_px = _read_side(unet.sample_size) * scale
    return Shape(channels, scale, alignment_px, side_px, sees_masks=unet.in_channels != channels)


def _read_side(sample_size: int | Sequence[int] | None) -> int:
    """Side of a square tile in latent pixels: a folder may state it, (height, width), or nothing."""
    if isinstance(sample_size, int):
        return sample_size
    return min(sample_size) if sample_size else _USUAL_SIDE


def read_defaults(pipe: UNetPipeline, usual: FamilyDefaults) -> FamilyDefaults:
    """The family's defaults, or those of a model that was distilled to few steps, which its scheduler shows.

    Latent consistency models have their own scheduler; turbo and lightning space their timesteps from the
    last on, which others do only together with zero terminal signal (Lin et al. 2024).
    """
    scheduler = find_scheduler(pipe)
    config = scheduler.config
    if pipe.unet.config.time_cond_proj_dim is not None:
        return replace(usual, steps=4, guidance_scale=8.5, negative_prompt=False)
    trailing = config.get("timestep_spacing") == "trailing" and config.get("prediction_type") == "epsilon"
    if type(scheduler).__name__ == "LCMScheduler" or (trailing and not config.get("rescale_betas_zero_snr")):
        return replace(usual, steps=4, guidance_scale=1.0)
    return usual


def use_scheduler(stage: StagePlan) -> SchedulerUse:
    return SchedulerUse(stage.steps, scales=True, eta=True)
