"""Stable Diffusion 1.x and 2.x, and every other folder of a StableDiffusionPipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from api_schemas.catalog import ModelCard
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, PreviewMap
from worker.adapters.preview_map import fit_preview_map, read_preview_map
from worker.adapters.settings import FolderSettings, read_settings
from worker.adapters.vae import flatten_decoder
from worker.engine.decoder import Decoder
from worker.engine.ensemble import Ensemble
from worker.engine.grid import Tile
from worker.engine.plan import StagePlan
from worker.engine.schedule import Scheduler


@dataclass(frozen=True, slots=True)
class StableDiffusionReplica:
    """One UNet with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width): negative prompt, prompt; unguided
            the prompt's alone.
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
        """Ho & Salimans 2022, eq. 6, in the form ε = ε₀ + s (ε₁ - ε₀)."""
        if len(predictions) == 1:
            return predictions[0]
        free, prompted = predictions
        return free + self.guidance_scale * (prompted - free)


@dataclass(frozen=True, slots=True)
class StableDiffusionSinger:
    """A pipeline with one prompt."""

    pipe: StableDiffusionPipeline
    replica: StableDiffusionReplica
    decoder: Decoder

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    def begin(self, stage: StagePlan) -> tuple[Ensemble, Scheduler]:
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(stage.steps, device=self.pipe.device)
        return Ensemble(self.replica, stage.modules), scheduler


class StableDiffusion:
    """A loaded folder."""

    def __init__(self, pipe: StableDiffusionPipeline, settings: FolderSettings, name: str) -> None:
        self._pipe = pipe
        self._decoder = flatten_decoder(pipe.vae)
        self.card = _describe(pipe, settings, name)
        self.preview_map = _preview_map(pipe, settings, self._decoder)

    def prepare(self, conditions: Conditions) -> StableDiffusionSinger:
        guided = conditions.guidance_scale != 1.0
        states = self._encode(conditions.prompt, conditions.negative_prompt, guided=guided)
        replica = StableDiffusionReplica(self._pipe.unet, states, conditions.guidance_scale)
        return StableDiffusionSinger(self._pipe, replica, self._decoder)

    @torch.inference_mode()
    def _encode(self, prompt: str, negative_prompt: str, *, guided: bool) -> Tensor:
        prompted, free = self._pipe.encode_prompt(prompt, self._pipe.device, 1, guided, negative_prompt)
        return prompted if free is None else torch.cat([free, prompted])


def load_stable_diffusion(folder: Path, device: torch.device) -> StableDiffusion:
    """Load a folder in float32 on a CPU, in bfloat16 elsewhere.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFolderError(f"{folder} cannot be loaded as a StableDiffusionPipeline: {error}") from error
    return StableDiffusion(pipe.to(device), read_settings(folder), folder.resolve().name)


def _describe(pipe: StableDiffusionPipeline, settings: FolderSettings, name: str) -> ModelCard:
    unet, scale = pipe.unet.config, pipe.vae_scale_factor
    native_size_px = settings.native_size_px or unet.sample_size * scale
    weights = sum(
        parameter.nbytes
        for part in (pipe.unet, pipe.vae, pipe.text_encoder)
        for parameter in part.parameters()
    )
    return ModelCard(
        name=settings.name or name,
        family="stable-diffusion",
        description=settings.description,
        license=settings.license,
        native_size_px=native_size_px,
        alignment_px=scale * 2 ** (len(unet.block_out_channels) - 1),
        latent_channels=unet.in_channels,
        vae_scale=scale,
        tile_sizes_px=settings.tile_sizes_px or [native_size_px],
        default_steps=settings.default_steps,
        max_steps=settings.max_steps,
        default_guidance_scale=settings.default_guidance_scale,
        default_num_modules=settings.default_num_modules or (1 if pipe.device.type == "cpu" else 8),
        weights_gib=round(weights / 2**30, 3),
    )


def _preview_map(pipe: StableDiffusionPipeline, settings: FolderSettings, decoder: Decoder) -> PreviewMap:
    if settings.latent_rgb is not None:
        return read_preview_map(settings.latent_rgb)
    return fit_preview_map(decoder, pipe.unet.config.in_channels, pipe.device)
