"""Sana."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from torch import Tensor

from worker.adapters.family import Habits, Shape
from worker.adapters.guidance import guide_classifier_free, pick_branches
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.vae import flatten_decoder
from worker.engine.decoder import Decoder
from worker.engine.ensemble import Replica
from worker.engine.grid import Tile
from worker.engine.plan import StagePlan
from worker.engine.schedule import Scheduler


@dataclass(frozen=True, slots=True)
class SanaReplica:
    """One transformer with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width).
        mask: 1 where a token is no filling, (branches, tokens).
    """

    transformer: SanaTransformer2DModel
    states: Tensor
    mask: Tensor
    guidance_scale: float

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(
        self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
    ) -> Tensor:
        prediction = self.transformer(
            crops.to(self.states.dtype),
            encoder_hidden_states=pick_branches(self.states, branches),
            encoder_attention_mask=pick_branches(self.mask, branches),
            timestep=timestep.expand(len(crops)) * self.transformer.config["timestep_scale"],
            return_dict=False,
        )[0]
        return prediction[:, : crops.shape[1]].float()  # the other half is a learned variance, unused

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class Sana:
    """A loaded folder. It knows no positions: its convolutions see where a tile ends."""

    pipe: SanaPipeline
    name = "sana"
    habits = Habits(steps=20, guidance_scale=4.5, add_ons=("lora",))

    @property
    def shape(self) -> Shape:
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        return Shape(config.in_channels, scale, scale * config.patch_size, config.sample_size * scale)

    def build_decoder(self) -> Decoder:
        return flatten_decoder(self.pipe.vae)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        prompted, mask, free, free_mask = self.pipe.encode_prompt(
            conditions.prompt,
            scale != 1.0,
            conditions.negative_prompt,
            device=self.pipe._execution_device,
            complex_human_instruction=_read_instruction(),
        )
        states = prompted if free is None else torch.cat([free, prompted])
        masks = mask if free_mask is None else torch.cat([free_mask, mask])
        return lambda stage: SanaReplica(self.pipe.transformer, states, masks, scale)

    def make_scheduler(self, stage: StagePlan) -> Scheduler:
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(stage.steps, device=self.pipe._execution_device)
        return scheduler


def _read_instruction() -> list[str]:
    """What the text encoder was asked in training before each prompt; diffusers keeps it as a default."""
    return list(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def load(folder: Path, device: torch.device) -> Sana:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return Sana(load_pipeline(SanaPipeline, folder, device))
