"""FLUX.1: dev, schnell and their kin."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from api_schemas.generation import Positions
from worker.adapters.extras.flux_control_net import FluxControlNets, FluxGuide
from worker.adapters.families.flow import count_tokens, even_sigmas, own_sigmas, shift_by_tokens
from worker.adapters.families.positions import predict_in_place
from worker.adapters.family import Habits, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.schedulers import Packing, SchedulerUse, make_scheduler
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan

PATCH = 2  # latent pixels a side that are packed into one token


@dataclass(frozen=True, slots=True)
class FluxReplica:
    """One transformer with one prompt; guidance was distilled into it, so there is one branch.

    Args:
        states: of the text, (1, tokens, width).
        pooled: (1, width).
        guidance_scale: that the transformer is told, or None where it cannot be told one.
        positions: of the image tokens; globally in halves where a tile begins between two.
        control: a ControlNet with its picture.
    """

    transformer: FluxTransformer2DModel
    states: Tensor
    pooled: Tensor
    guidance_scale: float | None
    positions: Positions
    control: FluxGuide | None = None

    @property
    def branches(self) -> int:
        return 1

    def predict(self, batch: Batch) -> Tensor:
        return predict_in_place(self._predict, self.positions, batch)

    def _predict(self, batch: Batch, corner: tuple[int, int]) -> Tensor:
        crops = batch.crops
        count, _, height, width = crops.shape
        dtype = self.states.dtype
        told = {
            "hidden_states": _pack(crops.to(dtype)),
            "timestep": batch.timesteps.to(dtype) / 1000,
            "guidance": self._guidance(crops),
            "pooled_projections": self.pooled.expand(count, -1),
            "encoder_hidden_states": self.states.expand(count, -1, -1),
            "txt_ids": crops.new_zeros(self.states.shape[1], 3),
            "img_ids": place_tokens(height, width, corner, crops.device),
        }
        double, single = (None, None) if self.control is None else self.control.steer(told, batch)
        tokens = self.transformer(
            **told,
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
            return_dict=False,
        )[0]
        return _unpack(tokens, height, width).float()

    def _guidance(self, crops: Tensor) -> Tensor | None:
        scale = self.guidance_scale
        return None if scale is None else torch.full((len(crops),), scale, device=crops.device)

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]


def _pack(latents: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(latents, *latents.shape)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    return FluxPipeline._unpack_latents(tokens, height, width, vae_scale_factor=1)


def place_tokens(height: int, width: int, corner: tuple[int, int], device: torch.device) -> Tensor:
    """Positions (tokens, 3) of a tile's tokens; float32, since bfloat16 cannot tell 257 from 256."""
    with device:  # made there: nothing has to wait for a copy
        ids = FluxPipeline._prepare_latent_image_ids(
            1, height // PATCH, width // PATCH, device, torch.float32
        )
    for axis, start in enumerate(corner, start=1):
        ids[:, axis] += start / PATCH
    return ids


@dataclass(frozen=True, slots=True)
class Flux:
    """A loaded folder."""

    pipe: FluxPipeline
    control_nets: FluxControlNets
    name = "flux"

    @property
    def habits(self) -> Habits:
        """Without embedded guidance it is a model of few steps, as FLUX.1-schnell."""
        guided = self.pipe.transformer.config.guidance_embeds
        steps, scale = (28, 3.5) if guided else (4, 1.0)
        return Habits(
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
        # FLUX.1-schnell was trained on 256 text tokens, FLUX.1-dev on 512.
        states, pooled, _ = self.pipe.encode_prompt(
            conditions.prompt,
            device=self.pipe._execution_device,
            max_sequence_length=512 if distilled else 256,
        )
        scale = conditions.guidance_scale if distilled else None
        lay = self.control_nets.open(conditions.control, self._find_timesteps)
        return lambda stage: FluxReplica(transformer, states, pooled, scale, conditions.positions, lay(stage))

    def _find_timesteps(self, stage: StagePlan) -> Tensor:
        pipe = self.pipe
        return make_scheduler(pipe.scheduler, self.use_scheduler(stage), pipe._execution_device).timesteps

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        kept = self.pipe.scheduler
        sigmas = own_sigmas(kept, even_sigmas(stage.steps))
        shift = shift_by_tokens(kept, count_tokens(stage.denoise, PATCH))
        timing: dict[str, object] = {"sigmas": sigmas, "mu": shift}
        return SchedulerUse(stage.steps, timing, from_first=True, packing=Packing(_pack, _unpack))


def load(folder: Path, device: torch.device) -> Flux:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    pipe = load_pipeline(FluxPipeline, folder, device)
    return Flux(pipe, FluxControlNets(pipe))
