"""What Stable Diffusion and Stable Diffusion XL share: a UNet that hears text, tile by tile."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from worker.adapters.family import Habits, Shape
from worker.adapters.guidance import guide_classifier_free, pick_branches
from worker.engine.grid import Tile
from worker.engine.plan import StagePlan
from worker.engine.schedule import Scheduler

UNetPipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

Tell = Callable[[Sequence[Tile], Sequence[int]], dict[str, Tensor]]
"""(tiles, branches) -> what a UNet's `added_cond_kwargs` say of each, first axis B."""


def tell_nothing(tiles: Sequence[Tile], branches: Sequence[int]) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, slots=True)
class UNetReplica:
    """One UNet with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width).
        strength: the guidance scale as a UNet hears it into which guidance was distilled, (1, width).
    """

    unet: UNet2DConditionModel
    states: Tensor
    guidance_scale: float
    strength: Tensor | None = None
    tell: Tell = tell_nothing

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(
        self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
    ) -> Tensor:
        states = pick_branches(self.states, branches)
        return self.unet(
            crops.to(states.dtype),
            timestep,
            encoder_hidden_states=states,
            timestep_cond=self.strength,
            added_cond_kwargs=self.tell(tiles, branches),
            return_dict=False,
        )[0].float()

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


def is_guided(pipe: UNetPipeline, scale: float) -> bool:
    """Whether a tile takes two predictions: not where guidance was distilled into the UNet."""
    return scale != 1.0 and pipe.unet.config.time_cond_proj_dim is None


def embed_strength(pipe: UNetPipeline, scale: float) -> Tensor | None:
    """For latent consistency models (Luo et al. 2023, section 4.2)."""
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return None
    embedded = pipe.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), embedding_dim=width)
    return embedded.to(pipe.device, pipe.unet.dtype)


def read_shape(pipe: UNetPipeline) -> Shape:
    unet, scale = pipe.unet.config, pipe.vae_scale_factor
    alignment_px = scale * 2 ** (len(unet.block_out_channels) - 1)
    return Shape(unet.in_channels, scale, alignment_px, unet.sample_size * scale)


def read_habits(pipe: UNetPipeline, usual: Habits) -> Habits:
    """A folder does not say that its model was distilled to few steps, but its scheduler does.

    Latent consistency models have their own scheduler; turbo and lightning space their timesteps from the
    last on, which others do only together with zero terminal signal (Lin et al. 2024).
    """
    config = pipe.scheduler.config
    if pipe.unet.config.time_cond_proj_dim is not None:
        return Habits(4, 8.5, negative_prompt=False)
    if type(pipe.scheduler).__name__ == "LCMScheduler":
        return Habits(4, 1.0)
    trailing = config.get("timestep_spacing") == "trailing"
    if trailing and config.get("prediction_type") == "epsilon" and not config.get("rescale_betas_zero_snr"):
        return Habits(4, 1.0)
    return usual


def make_scheduler(pipe: UNetPipeline, stage: StagePlan) -> Scheduler:
    """A fresh one after the folder's, its timesteps set."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(stage.steps, device=pipe.device)
    return scheduler
