"""Sana."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
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
class Sana:
    """A loaded Sana pipeline. It knows no positions: its convolutions see where a tile ends."""

    pipe: SanaPipeline
    name = "sana"
    defaults = FamilyDefaults(steps=20, guidance_scale=4.5, add_ons=("lora",))

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
            self.pipe.encode_prompt(
                prompt.text,
                guided,
                prompt.negative,
                device=find_execution_device(self.pipe),
                complex_human_instruction=_read_instruction(),
            ),
        )
        prompted, mask, negative, negative_mask = encoded
        return stack_branches(negative, prompted), stack_branches(negative_mask, mask)

    def _predict(self, crops: Tensor, timestep: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        transformer = self.pipe.transformer
        return transformer(
            crops,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=timestep * transformer.config["timestep_scale"],
            return_dict=False,
        )[0]

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        return SchedulerUse(stage.steps, eta=True)


def _read_instruction() -> list[str]:
    """The instruction that stood before each prompt in training; diffusers keeps it as a default."""
    call = cast(Callable[..., object], SanaPipeline.__call__)  # pyright: ignore[reportUnknownMemberType]  # untyped options
    return list(inspect.signature(call).parameters["complex_human_instruction"].default)


def load(folder: Path, device: torch.device) -> Sana:
    """Load a folder with a Sana pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return Sana(load_pipeline(SanaPipeline, folder, device))
