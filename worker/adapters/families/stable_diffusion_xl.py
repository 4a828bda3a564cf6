"""Stable Diffusion XL: base, turbo, lightning, LCM, whatever scheduler the folder has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from worker.adapters.extras.control_net import ControlNets
from worker.adapters.extras.ip_adapter import IpAdapters
from worker.adapters.families.guidance import pick_branches, stack_branches
from worker.adapters.families.unet import UNetReplica
from worker.adapters.family import Habits, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.schedulers import SchedulerUse
from worker.adapters.unet_pipeline import embed_strength, is_guided, read_habits, read_shape, use_scheduler
from worker.engine.canvas import Plane, Rectangle
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class Caption:
    """What SDXL is told of each tile beside the prompt.

    In training a picture of `original_size` was scaled, and from it a crop of `target_size` was cut
    at `crops_coords_top_left` (Podell et al. 2023, section 2.2). A tile is such a crop: of the canvas,
    which is not scaled, at its own corner. A canvas of one tile is then told what diffusers tells.
    On an axis that wraps the canvas has no border to count from and no tile is nearer to one than
    others: each is told that it lies in the middle, so nothing jumps where the picture joins itself.

    Args:
        pooled: the text as one vector a branch, (branches, width).
        scale: pixels per latent pixel.
    """

    pooled: Tensor
    canvas: Plane
    scale: int

    def tell(self, batch: Batch) -> dict[str, Tensor]:
        # float32: bfloat16 counts in steps of 8 above 1024.
        sizes = torch.tensor([self.measure(tile) for tile in batch.tiles], dtype=torch.float32)
        return {
            "text_embeds": pick_branches(self.pooled, batch.branches),
            "time_ids": sizes.to(self.pooled.device, non_blocking=True),
        }

    def measure(self, tile: Rectangle) -> list[int]:
        """original_size, crops_coords_top_left, target_size; pixels, each (height, width)."""
        sides = [*self.canvas.size, *self.canvas.corner(tile), tile.height, tile.width]
        return [side * self.scale for side in sides]


@dataclass(frozen=True, slots=True)
class StableDiffusionXL:
    """A loaded folder."""

    pipe: StableDiffusionXLPipeline
    control_nets: ControlNets
    ip_adapters: IpAdapters
    name = "stable-diffusion-xl"

    @property
    def shape(self) -> Shape:
        return read_shape(self.pipe)

    @property
    def habits(self) -> Habits:
        return read_habits(self.pipe, Habits(50, 5.0, add_ons=("lora", "controlnet", "ip_adapter")))

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        """Without a negative prompt the base model was trained on states of zeros, not of ""."""
        pipe, scale = self.pipe, conditions.guidance_scale
        guided = is_guided(pipe, scale)
        seen = self.ip_adapters.apply(conditions.ip_adapter, guided=guided)
        lay = self.control_nets.open(conditions.control)
        prompted, free, pooled, free_pooled = pipe.encode_prompt(
            conditions.prompt,
            device=pipe.device,
            do_classifier_free_guidance=guided,
            negative_prompt=conditions.negative_prompt or None,
        )
        states = stack_branches(free, prompted)
        pools = stack_branches(free_pooled, pooled)
        strength = embed_strength(pipe, scale)

        def begin(stage: StagePlan) -> Replica:
            caption = Caption(pools, stage.canvas, self.shape.scale)
            return UNetReplica(pipe.unet, states, scale, strength, caption.tell, seen, lay(stage))

        return begin

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        return use_scheduler(stage)


def load(folder: Path, device: torch.device) -> StableDiffusionXL:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    pipe = load_pipeline(StableDiffusionXLPipeline, folder, device, add_watermarker=False)
    return StableDiffusionXL(pipe, ControlNets(pipe), IpAdapters(pipe))
