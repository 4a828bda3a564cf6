"""Stable Diffusion 1.x and 2.x, and every other folder of a StableDiffusionPipeline."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from worker.adapters.extras.control_net import ControlNets
from worker.adapters.extras.ip_adapter import IpAdapters
from worker.adapters.families.guidance import stack_branches
from worker.adapters.families.unet import UNetReplica
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.inpainting import InpaintingPipeline, is_inpainting
from worker.adapters.latent_upscaler import UpscalingPipeline, has_upscaler, load_upscaler
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions, Prompt
from worker.adapters.schedulers import SchedulerUse
from worker.adapters.unet_pipeline import (
    embed_guidance_scale,
    is_guided,
    read_defaults,
    read_shape,
    use_scheduler,
)
from worker.engine.ensemble import Replica
from worker.engine.plan import StagePlan
from worker.engine.start import Upscale


@dataclass(frozen=True, slots=True)
class StableDiffusion:
    """A loaded Stable Diffusion pipeline."""

    pipe: StableDiffusionPipeline
    control_nets: ControlNets
    ip_adapters: IpAdapters
    name = "stable-diffusion"

    @property
    def shape(self) -> Shape:
        return read_shape(self.pipe)

    @property
    def defaults(self) -> FamilyDefaults:
        return read_defaults(self.pipe, FamilyDefaults(add_ons=("lora", "controlnet", "ip_adapter")))

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        pipe, scale = self.pipe, conditions.guidance_scale
        guided = is_guided(pipe, scale)
        image_prompt = self.ip_adapters.encode(conditions.ip_adapter, guided=guided)
        begin_control = self.control_nets.open(conditions.control)
        states = torch.stack([self._encode(prompt, guided=guided) for prompt in conditions.prompts])
        timestep_cond = embed_guidance_scale(pipe, scale)

        def begin(stage: StagePlan) -> Replica:
            if isinstance(pipe, UpscalingPipeline) and isinstance(stage.start, Upscale):
                # Without guidance and add-ons: the stage before has what they do, and this one sees it.
                return UNetReplica(
                    pipe.latent_upscaler, states[:, -1:], 1.0, replace(image_prompt, image_embeds=())
                )
            return UNetReplica(
                pipe.unet, states, scale, image_prompt, timestep_cond, control_net=begin_control(stage)
            )

        return begin

    def _encode(self, prompt: Prompt, *, guided: bool) -> Tensor:
        """Text states, (branches, tokens, width)."""
        pipe = self.pipe
        encoded = cast(
            tuple[Tensor, Tensor | None],
            pipe.encode_prompt(  # pyright: ignore[reportUnknownMemberType]  # its device has no type
                prompt.text, pipe.device, 1, guided, prompt.negative
            ),
        )
        prompted, negative = encoded
        return stack_branches(negative, prompted)

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        return use_scheduler(stage)


def load(folder: Path, device: torch.device) -> StableDiffusion:
    """Load a folder with a Stable Diffusion pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if has_upscaler(folder):
        upscaler = load_upscaler(folder, device)
        pipe = load_pipeline(UpscalingPipeline, folder, device, latent_upscaler=upscaler, **parts)
    else:
        kind = InpaintingPipeline if is_inpainting(folder) else StableDiffusionPipeline
        pipe = load_pipeline(kind, folder, device, **parts)
    return StableDiffusion(pipe, ControlNets(pipe), IpAdapters(pipe))
