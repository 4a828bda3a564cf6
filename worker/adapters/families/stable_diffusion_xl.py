"""Stable Diffusion XL: base, turbo, lightning, LCM, whatever scheduler the folder has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from worker.adapters.extras.control_net import ControlNets
from worker.adapters.extras.ip_adapter import IpAdapters
from worker.adapters.families.guidance import EncodedPrompt, pick_states, stack_branches
from worker.adapters.families.unet import UNetReplica
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.inpainting import InpaintingXLPipeline, is_inpainting
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
from worker.engine.canvas import Plane, Rectangle
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class MicroConditioning:
    """SDXL's `added_cond_kwargs` of each tile: pooled text, and where a picture was cropped.

    In training a picture of `original_size` was scaled, and from it a crop of `target_size` was cut
    at `crops_coords_top_left` (Podell et al. 2023, section 2.2). A tile is such a crop: of the canvas,
    which is not scaled, at its own corner. For a canvas of one tile that is what diffusers' pipeline passes.
    On an axis that wraps the canvas has no border to count from and no tile is nearer to one than
    others: each counts as the middle one, so nothing jumps where the picture joins itself.

    Args:
        pooled: the text as one vector for each prompt and branch, (prompts, branches, width).
        scale: pixels per latent pixel.
    """

    pooled: Tensor
    canvas: Plane
    scale: int

    def added_cond_kwargs(self, batch: Batch) -> dict[str, Tensor]:
        # float32: bfloat16 counts in steps of 8 above 1024.
        sizes = torch.tensor([self.time_ids(tile) for tile in batch.tiles], dtype=torch.float32)
        return {
            "text_embeds": pick_states(self.pooled, batch.queries),
            "time_ids": sizes.to(self.pooled.device, non_blocking=True),
        }

    def time_ids(self, tile: Rectangle) -> list[int]:
        """original_size, crops_coords_top_left, target_size; pixels, each (height, width)."""
        sides = [*self.canvas.size, *self.canvas.corner(tile), tile.height, tile.width]
        return [side * self.scale for side in sides]


@dataclass(frozen=True, slots=True)
class StableDiffusionXL:
    """A loaded SDXL pipeline."""

    pipe: StableDiffusionXLPipeline
    control_nets: ControlNets
    ip_adapters: IpAdapters
    name = "stable-diffusion-xl"

    @property
    def shape(self) -> Shape:
        return read_shape(self.pipe)

    @property
    def defaults(self) -> FamilyDefaults:
        return read_defaults(self.pipe, FamilyDefaults(50, 5.0, add_ons=("lora", "controlnet", "ip_adapter")))

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        pipe, scale = self.pipe, conditions.guidance_scale
        guided = is_guided(pipe, scale)
        image_prompt = self.ip_adapters.encode(conditions.ip_adapter, guided=guided)
        begin_control = self.control_nets.open(conditions.control)
        encoded = [self._encode(prompt, guided=guided) for prompt in conditions.prompts]
        states, pools = (torch.stack(each) for each in zip(*encoded, strict=True))
        timestep_cond = embed_guidance_scale(pipe, scale)

        def begin(stage: StagePlan) -> Replica:
            added = MicroConditioning(pools, stage.canvas, self.shape.scale).added_cond_kwargs
            return UNetReplica(
                pipe.unet, states, scale, image_prompt, timestep_cond, added, begin_control(stage)
            )

        return begin

    def _encode(self, prompt: Prompt, *, guided: bool) -> tuple[Tensor, Tensor]:
        """Text states (branches, tokens, width) and the pooled ones (branches, width).

        Without a negative prompt the base model was trained on states of zeros, not of "".
        """
        encoded = cast(
            EncodedPrompt,
            self.pipe.encode_prompt(
                prompt.text,
                device=self.pipe.device,
                do_classifier_free_guidance=guided,
                negative_prompt=prompt.negative or None,
            ),
        )
        prompted, negative, pooled, negative_pooled = encoded
        return stack_branches(negative, prompted), stack_branches(negative_pooled, pooled)

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        return use_scheduler(stage)


def load(folder: Path, device: torch.device) -> StableDiffusionXL:
    """Load a folder with a SDXL pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    kind = InpaintingXLPipeline if is_inpainting(folder) else StableDiffusionXLPipeline
    pipe = load_pipeline(kind, folder, device, add_watermarker=False)
    return StableDiffusionXL(pipe, ControlNets(pipe), IpAdapters(pipe))
