"""Stable Diffusion 1.x and 2.x, and every other folder of a StableDiffusionPipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from worker.adapters.family import Habits, Shape
from worker.adapters.guidance import guide_classifier_free
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.vae import flatten_decoder
from worker.engine.decoder import Decoder
from worker.engine.ensemble import Replica
from worker.engine.grid import Tile
from worker.engine.plan import StagePlan
from worker.engine.schedule import Scheduler


@dataclass(frozen=True, slots=True)
class StableDiffusionReplica:
    """One UNet with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width).
    """

    unet: UNet2DConditionModel
    states: Tensor
    guidance_scale: float

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(
        self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
    ) -> Tensor:
        states = self.states[list(branches)]
        inputs = crops.to(states.dtype)
        return self.unet(inputs, timestep, encoder_hidden_states=states, return_dict=False)[0].float()

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class StableDiffusion:
    """A loaded folder."""

    pipe: StableDiffusionPipeline
    name = "stable-diffusion"
    habits = Habits()

    @property
    def shape(self) -> Shape:
        unet, scale = self.pipe.unet.config, self.pipe.vae_scale_factor
        alignment_px = scale * 2 ** (len(unet.block_out_channels) - 1)
        return Shape(unet.in_channels, scale, alignment_px, unet.sample_size * scale)

    def build_decoder(self) -> Decoder:
        return flatten_decoder(self.pipe.vae)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        prompted, free = self.pipe.encode_prompt(
            conditions.prompt, self.pipe.device, 1, scale != 1.0, conditions.negative_prompt
        )
        states = prompted if free is None else torch.cat([free, prompted])
        return lambda stage: StableDiffusionReplica(self.pipe.unet, states, scale)

    def make_scheduler(self, stage: StagePlan) -> Scheduler:
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(stage.steps, device=self.pipe.device)
        return scheduler


def load(folder: Path, device: torch.device) -> StableDiffusion:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    pipe = load_pipeline(
        StableDiffusionPipeline, folder, device,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return StableDiffusion(pipe)
