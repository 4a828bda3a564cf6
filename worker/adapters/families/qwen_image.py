"""Qwen-Image."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor

from worker.adapters.families.flow import count_tokens, even_sigmas, shift_by_tokens
from worker.adapters.families.guidance import guide_classifier_free, pick_branches
from worker.adapters.family import Habits, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.schedulers import Packing, SchedulerUse
from worker.engine.ensemble import Batch, Replica
from worker.engine.plan import StagePlan

PATCH = 2  # latent pixels a side that are packed into one token
MAX_TEXT_TOKENS = 512  # as diffusers' pipeline asks for


@dataclass(frozen=True, slots=True)
class QwenImageReplica:
    """One transformer with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width), the shorter filled with zeros.
        mask: true where a token is no filling, (branches, tokens), or None where nothing was filled.
            A token's position does not depend on how many there are, so filling changes nothing.
    """

    transformer: QwenImageTransformer2DModel
    states: Tensor
    mask: Tensor | None
    guidance_scale: float

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(self, batch: Batch) -> Tensor:
        height, width = batch.crops.shape[-2:]
        inputs, branches = batch.crops.to(self.states.dtype), batch.branches
        tokens = self.transformer(
            hidden_states=_pack(inputs),
            timestep=batch.timesteps.to(inputs.dtype) / 1000,
            encoder_hidden_states=pick_branches(self.states, branches),
            encoder_hidden_states_mask=None if self.mask is None else pick_branches(self.mask, branches),
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(inputs),
            return_dict=False,
        )[0]
        return _unpack(tokens, height, width).float()

    def guide(self, predictions: Tensor) -> Tensor:
        """Each token keeps the length that it has with the prompt alone, as in diffusers' pipeline."""
        if len(predictions) == 1:
            return predictions[0]
        height, width = predictions.shape[-2:]
        prompted = _pack(predictions[1:])
        guided = _pack(guide_classifier_free(predictions, self.guidance_scale)[None])
        kept = guided * (prompted.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return _unpack(kept, height, width)[0]


def _fill(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Bring texts (tokens, width) to one length; attention without a mask has the faster kernels."""
    lengths = torch.tensor([len(text) for text in texts], device=texts[0].device)
    longest = int(lengths.max())
    states = torch.stack([F.pad(text, (0, 0, 0, longest - len(text))) for text in texts])
    mask = torch.arange(longest, device=states.device) < lengths[:, None]
    return states, None if mask.all() else mask


def _pack(latents: Tensor) -> Tensor:
    return QwenImagePipeline._pack_latents(latents, *latents.shape)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    return QwenImagePipeline._unpack_latents(tokens, height, width, vae_scale_factor=1)[:, :, 0]


@dataclass(frozen=True, slots=True)
class QwenImage:
    """A loaded folder. Its transformer counts positions from the middle of what it sees: of each tile."""

    pipe: QwenImagePipeline
    name = "qwen-image"
    habits = Habits(steps=50, guidance_scale=4.0, add_ons=("lora",))

    @property
    def shape(self) -> Shape:
        scale = self.pipe.vae_scale_factor
        channels = self.pipe.transformer.config.in_channels // PATCH**2
        return Shape(channels, scale, scale * PATCH, self.pipe.default_sample_size * scale)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        prompts = [conditions.prompt] if scale == 1.0 else [conditions.negative_prompt, conditions.prompt]
        # One by one: filling is added after the text encoder, which need not know of it.
        texts = [
            self.pipe.encode_prompt(prompt, self.pipe._execution_device, max_sequence_length=MAX_TEXT_TOKENS)[
                0
            ][0]
            for prompt in prompts
        ]
        states, mask = _fill(texts)
        return lambda stage: QwenImageReplica(self.pipe.transformer, states, mask, scale)

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        kept = self.pipe.scheduler
        shift = shift_by_tokens(kept, count_tokens(stage.denoise, PATCH))
        timing: dict[str, object] = {"sigmas": even_sigmas(stage.steps), "mu": shift}
        return SchedulerUse(stage.steps, timing, from_first=True, packing=Packing(_pack, _unpack))


def load(folder: Path, device: torch.device) -> QwenImage:
    """Load a folder.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return QwenImage(load_pipeline(QwenImagePipeline, folder, device))
