"""FLUX.2: dev, whose guidance is embedded, and klein, which is guided by two branches or not at all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline, compute_empirical_mu
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from torch import Tensor

from api_schemas.advanced import Positions
from worker.adapters.families.flow import count_tokens, even_sigmas, own_sigmas
from worker.adapters.families.guidance import guide_classifier_free, pick_states
from worker.adapters.families.positions import place_tokens, predict_in_place
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.model_index import read_index
from worker.adapters.placement import find_execution_device
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import Packing, SchedulerUse
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan

PATCH = 2  # of the autoencoder's pixels a side are one pixel of the canvas, which is one token


@dataclass(frozen=True, slots=True)
class Flux2Replica:
    """One transformer with its prompts.

    Args:
        states: text states of each prompt and branch, (prompts, branches, tokens, width), filled up by the tokenizer.
        text_ids: positions of the text, (1, tokens, 4).
        embedded_scale: embedded by the transformer, or None.
        guidance_scale: between the branches.
    """

    transformer: Flux2Transformer2DModel
    states: Tensor
    text_ids: Tensor
    embedded_scale: float | None
    guidance_scale: float
    positions: Positions

    @property
    def branches(self) -> int:
        return self.states.shape[1]

    def predict(self, batch: Batch) -> Tensor:
        return predict_in_place(self._predict, self.positions, batch)

    def _predict(self, batch: Batch, corner: tuple[int, int]) -> Tensor:
        crops = batch.crops
        height, width = crops.shape[-2:]
        inputs = crops.to(self.states.dtype)
        tokens = self.transformer(
            hidden_states=_pack(inputs),
            timestep=batch.timesteps.to(inputs.dtype) / 1000,
            guidance=self._guidance(crops),
            encoder_hidden_states=pick_states(self.states, batch.queries),
            txt_ids=self.text_ids,
            img_ids=place_tokens(height, width, corner, 4, crops.device),
            return_dict=False,
        )[0]
        return _unpack(tokens, height, width).float()

    def _guidance(self, crops: Tensor) -> Tensor | None:
        scale = self.embedded_scale
        return None if scale is None else torch.full((len(crops),), scale, device=crops.device)

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)


def _pack(latents: Tensor) -> Tensor:
    return latents.flatten(2).transpose(1, 2)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    return torch.unflatten(tokens.transpose(1, 2), -1, (height, width))


@dataclass(frozen=True, slots=True)
class Flux2:
    """A loaded FLUX.2 pipeline."""

    pipe: Flux2Pipeline | Flux2KleinPipeline
    name = "flux-2"

    @property
    def _embeds_guidance(self) -> bool:
        return isinstance(self.pipe, Flux2Pipeline)

    @property
    def _distilled(self) -> bool:
        return self._embeds_guidance or bool(self.pipe.config["is_distilled"])

    @property
    def defaults(self) -> FamilyDefaults:
        few = self._distilled and not self._embeds_guidance
        steps, scale = (4, 1.0) if few else (50, 4.0)
        return FamilyDefaults(
            steps, scale, ("local", "global"),
            negative_prompt=not self._distilled, guidance=not few, add_ons=("lora",),
        )  # fmt: skip

    @property
    def shape(self) -> Shape:
        scale = self.pipe.vae_scale_factor * PATCH
        native_size_px = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return Shape(self.pipe.transformer.config.in_channels, scale, scale, native_size_px)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        alone = self._distilled or scale == 1.0
        device = find_execution_device(self.pipe)
        encoded = [
            [self.pipe.encode_prompt(text, device) for text in prompt.list_branches(alone=alone)]
            for prompt in conditions.prompts
        ]
        states = torch.stack([torch.cat([states for states, _ in branches]) for branches in encoded])
        text_ids = encoded[0][0][1]
        embedded = scale if self._embeds_guidance else None
        return lambda stage: Flux2Replica(
            self.pipe.transformer, states, text_ids, embedded, scale, conditions.positions
        )

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        shift = compute_empirical_mu(count_tokens(stage.denoise, 1), stage.steps)
        sigmas = own_sigmas(find_scheduler(self.pipe), even_sigmas(stage.steps))
        timing: dict[str, object] = {"sigmas": sigmas, "mu": shift}
        return SchedulerUse(stage.steps, timing, from_first=True, packing=Packing(_pack, _unpack))


def load(folder: Path, device: torch.device) -> Flux2:
    """Load a folder with a FLUX.2 pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    kinds = {kind.__name__: kind for kind in (Flux2Pipeline, Flux2KleinPipeline)}
    return Flux2(load_pipeline(kinds[read_index(folder).kind], folder, device))
