"""Z-Image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline, get_default_z_image_sigmas
from torch import Tensor

from api_schemas.advanced import MAX_TILE_SIZE_PX
from worker.adapters.families.flow import count_tokens, shift_by_tokens
from worker.adapters.families.guidance import guide_classifier_free
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions, Prompt
from worker.adapters.placement import find_execution_device
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import SchedulerUse
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan

PATCH = 2  # latent pixels a side that are packed into one token


@dataclass(frozen=True, slots=True)
class ZImageReplica:
    """One transformer with its prompts.

    Args:
        texts: states of each branch of each prompt in turn, (tokens, width) of any length; the transformer
            itself pads the shorter and masks the padding.
        branches: of each prompt.
    """

    transformer: ZImageTransformer2DModel
    texts: Sequence[Tensor]
    branches: int
    guidance_scale: float

    def predict(self, batch: Batch) -> Tensor:
        """Its clock runs from noise at 0 to the picture at 1, and its velocity with it."""
        predictions = self.transformer(
            list(batch.crops[:, :, None].to(self.texts[0].dtype)),
            (1000 - batch.timesteps) / 1000,
            [self.texts[query.prompt * self.branches + query.branch] for query in batch.queries],
            return_dict=False,
        )[0]
        return -torch.stack(predictions)[:, :, 0].float()

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class ZImage:
    """A loaded Z-Image pipeline.

    Its pipeline counts guidance from 0, here as everywhere 1 is off: ours is theirs plus one. Its
    transformer lays positions itself, behind the text and from each tile's corner.
    """

    pipe: ZImagePipeline
    name = "z-image"
    defaults = FamilyDefaults(steps=50, guidance_scale=6.0, add_ons=("lora",))

    @property
    def shape(self) -> Shape:
        scale = self.pipe.vae_scale_factor
        config = self.pipe.transformer.config
        most_px = min(*config.axes_lens[1:], MAX_TILE_SIZE_PX // (scale * PATCH)) * scale * PATCH
        return Shape(config.in_channels, scale, scale * PATCH, min(1024, most_px), most_px)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        guided = scale != 1.0
        texts = [text for prompt in conditions.prompts for text in self._encode(prompt, guided=guided)]
        return lambda stage: ZImageReplica(self.pipe.transformer, texts, 1 + guided, scale)

    def _encode(self, prompt: Prompt, *, guided: bool) -> list[Tensor]:
        """Text states of each branch, (tokens, width)."""
        device = find_execution_device(self.pipe)
        prompted, negative = self.pipe.encode_prompt(prompt.text, device, guided, prompt.negative)
        return [*(negative or []), *prompted]

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        shift = shift_by_tokens(find_scheduler(self.pipe), count_tokens(stage.denoise, PATCH))
        sigmas = get_default_z_image_sigmas(stage.steps)
        return SchedulerUse(stage.steps, {"sigmas": sigmas, "mu": shift}, from_first=True)


def load(folder: Path, device: torch.device) -> ZImage:
    """Load a folder with a Z-Image pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return ZImage(load_pipeline(ZImagePipeline, folder, device))
