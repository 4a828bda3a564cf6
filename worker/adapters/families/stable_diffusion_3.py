"""Stable Diffusion 3 and 3.5."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor

from api_schemas.advanced import MAX_TILE_SIZE_PX
from worker.adapters.families.flow import count_tokens, shift_by_tokens
from worker.adapters.families.guidance import (
    EncodedPrompt,
    guide_classifier_free,
    pick_states,
    stack_branches,
)
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions, Prompt
from worker.adapters.placement import find_execution_device
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import SchedulerUse
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class StableDiffusion3Replica:
    """One transformer with its prompts.

    Args:
        states: text states of each prompt and branch, (prompts, branches, tokens, width).
        pooled: (prompts, branches, width).
    """

    transformer: SD3Transformer2DModel
    states: Tensor
    pooled: Tensor
    guidance_scale: float

    @property
    def branches(self) -> int:
        return self.states.shape[1]

    def predict(self, batch: Batch) -> Tensor:
        return self.transformer(
            hidden_states=batch.crops.to(self.states.dtype),
            timestep=batch.timesteps,
            encoder_hidden_states=pick_states(self.states, batch.queries),
            pooled_projections=pick_states(self.pooled, batch.queries),
            return_dict=False,
        )[0].float()

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class StableDiffusion3:
    """A loaded Stable Diffusion 3 pipeline. Its table of positions is centred on what it sees: on each tile."""

    pipe: StableDiffusion3Pipeline
    name = "stable-diffusion-3"
    defaults = FamilyDefaults(steps=28, guidance_scale=7.0, add_ons=("lora",))

    @property
    def shape(self) -> Shape:
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        patch_px = scale * config.patch_size
        most_px = min(config.pos_embed_max_size * patch_px, MAX_TILE_SIZE_PX)
        return Shape(config.in_channels, scale, patch_px, config.sample_size * scale, most_px)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        encoded = [self._encode(prompt, guided=scale != 1.0) for prompt in conditions.prompts]
        states, pools = (torch.stack(each) for each in zip(*encoded, strict=True))
        return lambda stage: StableDiffusion3Replica(self.pipe.transformer, states, pools, scale)

    def _encode(self, prompt: Prompt, *, guided: bool) -> tuple[Tensor, Tensor]:
        """Text states (branches, tokens, width) and the pooled ones (branches, width)."""
        encoded = self.pipe.encode_prompt(
            *[prompt.text] * 3,
            device=find_execution_device(self.pipe),
            do_classifier_free_guidance=guided,
            negative_prompt=prompt.negative,
        )
        prompted, negative, pooled, negative_pooled = cast(EncodedPrompt, encoded)
        return stack_branches(negative, prompted), stack_branches(negative_pooled, pooled)

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        kept = find_scheduler(self.pipe)
        if not kept.config.get("use_dynamic_shifting"):
            return SchedulerUse(stage.steps)
        tokens = count_tokens(stage.denoise, self.pipe.transformer.config.patch_size)
        return SchedulerUse(stage.steps, {"mu": shift_by_tokens(kept, tokens, max_shift=1.16)})


def load(folder: Path, device: torch.device) -> StableDiffusion3:
    """Load a folder with a Stable Diffusion 3 pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return StableDiffusion3(load_pipeline(StableDiffusion3Pipeline, folder, device))
