"""PixArt-Sigma."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from torch import Tensor

from worker.adapters.families.guidance import stack_branches
from worker.adapters.families.masked_text import MaskedTextReplica
from worker.adapters.family import Habits, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.schedulers import SchedulerUse
from worker.engine.ensemble import Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class PixArtSigma:
    """A loaded folder. Its positions are made from the size of what it sees: of each tile."""

    pipe: PixArtSigmaPipeline
    name = "pixart-sigma"
    habits = Habits(steps=20, guidance_scale=4.5)

    @property
    def shape(self) -> Shape:
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        return Shape(config.in_channels, scale, scale * config.patch_size, config.sample_size * scale)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        prompted, mask, free, free_mask = self.pipe.encode_prompt(
            conditions.prompt, scale != 1.0, conditions.negative_prompt, device=self.pipe._execution_device
        )
        states = stack_branches(free, prompted)
        masks = stack_branches(free_mask, mask)
        return lambda stage: MaskedTextReplica(self._ask, states, masks, scale)

    def _ask(self, crops: Tensor, timestep: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.pipe.transformer(
            crops,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        return SchedulerUse(stage.steps, scales=True, eta=True)


def load(folder: Path, device: torch.device) -> PixArtSigma:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return PixArtSigma(load_pipeline(PixArtSigmaPipeline, folder, device))
