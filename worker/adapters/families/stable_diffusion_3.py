"""Stable Diffusion 3 and 3.5."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor

from api_schemas.generation import MAX_TILE_SIZE_PX
from worker.adapters.families.flow import count_tokens, shift_by_tokens
from worker.adapters.families.guidance import guide_classifier_free, pick_branches, stack_branches
from worker.adapters.family import Habits, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.schedulers import SchedulerUse
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class StableDiffusion3Replica:
    """One transformer with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width).
        pooled: (branches, width).
    """

    transformer: SD3Transformer2DModel
    states: Tensor
    pooled: Tensor
    guidance_scale: float

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(self, batch: Batch) -> Tensor:
        return self.transformer(
            hidden_states=batch.crops.to(self.states.dtype),
            timestep=batch.timesteps,
            encoder_hidden_states=pick_branches(self.states, batch.branches),
            pooled_projections=pick_branches(self.pooled, batch.branches),
            return_dict=False,
        )[0].float()

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class StableDiffusion3:
    """A loaded folder. Its table of positions is centred on what it sees: on each tile."""

    pipe: StableDiffusion3Pipeline
    name = "stable-diffusion-3"
    habits = Habits(steps=28, guidance_scale=7.0, add_ons=("lora",))

    @property
    def shape(self) -> Shape:
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        patch_px = scale * config.patch_size
        most_px = min(config.pos_embed_max_size * patch_px, MAX_TILE_SIZE_PX)
        return Shape(config.in_channels, scale, patch_px, config.sample_size * scale, most_px)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        prompted, free, pooled, free_pooled = self.pipe.encode_prompt(
            *[conditions.prompt] * 3,
            device=self.pipe._execution_device,
            do_classifier_free_guidance=scale != 1.0,
            negative_prompt=conditions.negative_prompt,
        )
        states = stack_branches(free, prompted)
        pools = stack_branches(free_pooled, pooled)
        return lambda stage: StableDiffusion3Replica(self.pipe.transformer, states, pools, scale)

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        kept = self.pipe.scheduler
        if not kept.config.get("use_dynamic_shifting"):
            return SchedulerUse(stage.steps)
        tokens = count_tokens(stage.denoise, self.pipe.transformer.config.patch_size)
        return SchedulerUse(stage.steps, {"mu": shift_by_tokens(kept, tokens, max_shift=1.16)})


def load(folder: Path, device: torch.device) -> StableDiffusion3:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return StableDiffusion3(load_pipeline(StableDiffusion3Pipeline, folder, device))
