"""PixArt-Sigma."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from torch import Tensor

from worker.adapters.families.guidance import stack_branches
from worker.adapters.families.masked_text import EncodedMaskedPrompt, MaskedTextReplica
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions, Prompt
from worker.adapters.placement import find_execution_device
from worker.adapters.schedulers import SchedulerUse
from worker.engine.ensemble import Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class PixArtSigma:
    """A loaded PixArt-Sigma pipeline. Its positions are made from the size of what it sees: of each tile."""

    pipe: PixArtSigmaPipeline
    name = "pixart-sigma"
    defaults = FamilyDefaults(steps=20, guidance_scale=4.5)

    @property
    def shape(self) -> Shape:
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        return Shape(config.in_channels, scale, scale * config.patch_size, config.sample_size * scale)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        encoded = [self._encode(prompt, guided=scale != 1.0) for prompt in conditions.prompts]
        states, masks = (torch.stack(each) for each in zip(*encoded, strict=True))
        return lambda stage: MaskedTextReplica(self._predict, states, masks, scale)

    def _encode(self, prompt: Prompt, *, guided: bool) -> tuple[Tensor, Tensor]:
        """Text states and their mask, (branches, tokens, ...)."""
        encoded = cast(
            EncodedMaskedPrompt,
            self.pipe.encode_prompt(  # pyright: ignore[reportUnknownMemberType]  # its options have no types
                prompt.text, guided, prompt.negative, device=find_execution_device(self.pipe)
            ),
        )
        prompted, mask, negative, negative_mask = encoded
        return stack_branches(negative, prompted), stack_branches(negative_mask, mask)

    def _predict(self, crops: Tensor, timestep: Tensor, states: Tensor, mask: Tensor) -> Tensor:
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
    """Load a folder with a PixArt-Sigma pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return PixArtSigma(load_pipeline(PixArtSigmaPipeline, folder, device))
