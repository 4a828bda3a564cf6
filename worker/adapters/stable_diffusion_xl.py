"""Stable Diffusion XL: base, turbo, lightning, LCM, whatever scheduler its folder holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
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
class StableDiffusionXLReplica:
    """One UNet with one prompt on one canvas.

    Args:
        states: text states of each branch, (branches, tokens, width).
        pooled: (branches, width).
        canvas_px: (height, width).
        scale: pixels per latent pixel.
        told_scale: embedding (1, width) of the guidance scale, for UNets that guide themselves (LCM).
    """

    unet: UNet2DConditionModel
    states: Tensor
    pooled: Tensor
    guidance_scale: float
    canvas_px: tuple[int, int]
    scale: int
    told_scale: Tensor | None

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(
        self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
    ) -> Tensor:
        chosen = list(branches)
        sizes = torch.tensor([self._describe(tile) for tile in tiles], dtype=torch.float32)
        told = None if self.told_scale is None else self.told_scale.expand(len(crops), -1)
        return self.unet(
            crops.to(self.states.dtype),
            timestep,
            encoder_hidden_states=self.states[chosen],
            timestep_cond=told,
            added_cond_kwargs={
                "text_embeds": self.pooled[chosen],
                "time_ids": sizes.to(crops.device, non_blocking=True),
            },
            return_dict=False,
        )[0].float()

    def _describe(self, tile: Tile) -> tuple[int, ...]:
        """Original size, corner of the crop, size of the crop: the truth about a tile as a crop of the canvas.

        Podell et al. 2023, section 2.2. A tile that runs over the edge of a wrapping canvas lies where
        it begins.
        """
        place = tile.scaled(self.scale)
        return (*self.canvas_px, place.top, place.left, place.height, place.width)

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class StableDiffusionXL:
    """A loaded folder."""

    pipe: StableDiffusionXLPipeline
    name = "stable-diffusion-xl"

    @property
    def habits(self) -> Habits:
        """A UNet that guides itself is a consistency model of few steps."""
        return Habits(4, 8.0, negative_prompt=False) if self._guides_itself else Habits(50, 5.0)

    @property
    def _guides_itself(self) -> bool:
        return self.pipe.unet.config.time_cond_proj_dim is not None

    @property
    def shape(self) -> Shape:
        unet, scale = self.pipe.unet.config, self.pipe.vae_scale_factor
        alignment_px = scale * 2 ** (len(unet.block_out_channels) - 1)
        return Shape(unet.in_channels, scale, alignment_px, unet.sample_size * scale)

    def build_decoder(self) -> Decoder:
        return flatten_decoder(self.pipe.vae)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        # Without a negative prompt diffusers may take zeros in place of the empty prompt's states.
        prompted, free, pooled, free_pooled = self.pipe.encode_prompt(
            conditions.prompt,
            device=self.pipe.device,
            do_classifier_free_guidance=scale != 1.0 and not self._guides_itself,
            negative_prompt=conditions.negative_prompt or None,
        )
        states = prompted if free is None else torch.cat([free, prompted])
        pools = pooled if free_pooled is None else torch.cat([free_pooled, pooled])
        told = self._embed_scale(scale)

        def make_replica(stage: StagePlan) -> StableDiffusionXLReplica:
            factor = self.pipe.vae_scale_factor
            canvas_px = (stage.denoise.height * factor, stage.denoise.width * factor)
            return StableDiffusionXLReplica(self.pipe.unet, states, pools, scale, canvas_px, factor, told)

        return make_replica

    def _embed_scale(self, scale: float) -> Tensor | None:
        """Meng et al. 2023, section 3: guidance that was distilled into the network."""
        if not self._guides_itself:
            return None
        width = self.pipe.unet.config.time_cond_proj_dim
        embedding = self.pipe.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), width)
        return embedding.to(self.pipe.device, self.pipe.unet.dtype)

    def make_scheduler(self, stage: StagePlan) -> Scheduler:
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(stage.steps, device=self.pipe.device)
        return scheduler


def load(folder: Path, device: torch.device) -> StableDiffusionXL:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return StableDiffusionXL(load_pipeline(StableDiffusionXLPipeline, folder, device, add_watermarker=False))
