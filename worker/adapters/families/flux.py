"""FLUX.1: dev, schnell and their kin."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from api_schemas.advanced import Positions
from worker.adapters.extras.flux_control_net import FluxControlNets, StageFluxControlNet
from worker.adapters.families.flow import count_tokens, even_sigmas, own_sigmas, shift_by_tokens
from worker.adapters.families.guidance import pick_states
from worker.adapters.families.positions import place_tokens, predict_in_place
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.packing import PATCH, pack, unpack
from worker.adapters.placement import find_execution_device
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import Packing, SchedulerUse, make_scheduler
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class FluxReplica:
    """One transformer with its prompts; guidance was distilled into it, so there is one branch.

    Args:
        states: of each prompt, (prompts, 1, tokens, width).
        pooled: (prompts, 1, width).
        guidance_scale: embedded by the transformer, or None where it embeds none.
        positions: of the image tokens; globally in halves where a tile begins between two.
        control_net: with its image, or none.
    """

    transformer: FluxTransformer2DModel
    states: Tensor
    pooled: Tensor
    guidance_scale: float | None
    positions: Positions
    control_net: StageFluxControlNet | None = None

    @property
    def branches(self) -> int:
        return 1

    def predict(self, batch: Batch) -> Tensor:
        return predict_in_place(self._predict, self.positions, batch)

    def _predict(self, batch: Batch, corner: tuple[int, int]) -> Tensor:
        crops = batch.crops
        height, width = crops.shape[-2:]
        dtype = self.states.dtype
        inputs = {
            "hidden_states": pack(crops.to(dtype)),
            "timestep": batch.timesteps.to(dtype) / 1000,
            "guidance": self._guidance(crops),
            "pooled_projections": pick_states(self.pooled, batch.queries),
            "encoder_hidden_states": pick_states(self.states, batch.queries),
            "txt_ids": crops.new_zeros(self.states.shape[2], 3),
            "img_ids": place_tokens(
                height // PATCH, width // PATCH, (corner[0] / PATCH, corner[1] / PATCH), 3, crops.device
            ),
        }
        double, single = None, None
        if self.control_net is not None:
            double, single = self.control_net.predict_residuals(inputs, batch)
        tokens = self.transformer(
            **inputs,
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
            return_dict=False,
        )[0]
        return unpack(tokens, height, width).float()

    def _guidance(self, crops: Tensor) -> Tensor | None:
        scale = self.guidance_scale
        return None if scale is None else torch.full((len(crops),), scale, device=crops.device)

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]


@dataclass(frozen=True, slots=True)
class Flux:
    """A loaded FLUX.1 pipeline."""

    pipe: FluxPipeline
    control_nets: FluxControlNets
    name = "flux"

    @property
    def defaults(self) -> FamilyDefaults:
        """Without embedded guidance it is a model of few steps, as FLUX.1-schnell."""
        guided = self.pipe.transformer.config.guidance_embeds
        steps, scale = (28, 3.5) if guided else (4, 1.0)
        return FamilyDefaults(
            steps,
            scale,
            ("local", "global"),
            negative_prompt=False,
            guidance=guided,
            add_ons=("lora", "controlnet"),
        )

    @property
    def shape(self) -> Shape:
        scale = self.pipe.vae_scale_factor
        channels = self.pipe.transformer.config.in_channels // PATCH**2
        return Shape(channels, scale, scale * PATCH, self.pipe.default_sample_size * scale)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        transformer = self.pipe.transformer
        distilled = transformer.config.guidance_embeds
        encoded = [self._encode(prompt.text) for prompt in conditions.prompts]
        states, pooled = (torch.stack(each) for each in zip(*encoded, strict=True))
        scale = conditions.guidance_scale if distilled else None
        begin_control = self.control_nets.open(conditions.control, self._find_timesteps)
        return lambda stage: FluxReplica(
            transformer, states, pooled, scale, conditions.positions, begin_control(stage)
        )

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Text states (1, tokens, width) and the pooled ones (1, width)."""
        encoded = self.pipe.encode_prompt(
            prompt,
            device=find_execution_device(self.pipe),
            # FLUX.1-schnell was trained on 256 text tokens, FLUX.1-dev on 512.
            max_sequence_length=512 if self.pipe.transformer.config.guidance_embeds else 256,
        )
        states, pooled, _ = cast(tuple[Tensor, Tensor, Tensor], encoded)
        return states, pooled

    def _find_timesteps(self, stage: StagePlan) -> Tensor:
        kept, device = find_scheduler(self.pipe), find_execution_device(self.pipe)
        scheduler = make_scheduler(kept, self.use_scheduler(stage.whole), device)
        scheduler.skip(stage.whole.steps - stage.steps)
        return scheduler.timesteps

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        kept = find_scheduler(self.pipe)
        sigmas = own_sigmas(kept, even_sigmas(stage.steps))
        shift = shift_by_tokens(kept, count_tokens(stage.denoise, PATCH))
        timing: dict[str, object] = {"sigmas": sigmas, "mu": shift}
        return SchedulerUse(stage.steps, timing, from_first=True, packing=Packing(pack, unpack))


def load(folder: Path, device: torch.device) -> Flux:
    """Load a folder with a FLUX.1 pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    pipe = load_pipeline(FluxPipeline, folder, device)
    return Flux(pipe, FluxControlNets(pipe))
