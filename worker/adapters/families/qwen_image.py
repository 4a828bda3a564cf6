"""Qwen-Image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor

from worker.adapters.families.flow import count_tokens, even_sigmas, shift_by_tokens
from worker.adapters.families.guidance import guide_classifier_free
from worker.adapters.family import FamilyDefaults, Shape
from worker.adapters.loading import load_pipeline
from worker.adapters.model import Conditions
from worker.adapters.packing import PATCH, pack, unpack
from worker.adapters.placement import find_execution_device
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import Packing, SchedulerUse
from worker.engine.ensemble import Batch, Query, Replica
from worker.engine.plan import StagePlan

MAX_TEXT_TOKENS = 512  # as diffusers' pipeline asks for


@dataclass(frozen=True, slots=True)
class QwenImageReplica:
    """One transformer with its prompts.

    Args:
        texts: states of each branch of each prompt in turn, (tokens, width). In a batch they are padded with zeros
            to the longest branch of its prompts, whether or not that one is in the batch. A token's position does
            not depend on how many there are, so padding changes nothing.
        branches: of each prompt.
    """

    transformer: QwenImageTransformer2DModel
    texts: Sequence[Tensor]
    branches: int
    guidance_scale: float

    def predict(self, batch: Batch) -> Tensor:
        height, width = batch.crops.shape[-2:]
        inputs = batch.crops.to(self.texts[0].dtype)
        states, mask = self._pad(batch.queries)
        tokens = self.transformer(
            hidden_states=pack(inputs),
            timestep=batch.timesteps.to(inputs.dtype) / 1000,
            encoder_hidden_states=states,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(inputs),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width).float()

    def _pad(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor | None]:
        """States (B, tokens, width), and true where a token is no padding, (B, tokens).

        Without padding there is no mask: attention without one has the faster kernels.
        """
        firsts = [query.prompt * self.branches for query in queries]
        texts = [self.texts[first + query.branch] for first, query in zip(firsts, queries, strict=True)]
        lengths = [len(text) for first in firsts for text in self.texts[first : first + self.branches]]
        longest = max(lengths)
        states = torch.stack([F.pad(text, (0, 0, 0, longest - len(text))) for text in texts])
        if min(lengths) == longest:
            return states, None
        ends = [torch.full((1,), len(text), device=states.device) for text in texts]  # no copy from the host
        return states, torch.arange(longest, device=states.device) < torch.stack(ends)

    def guide(self, predictions: Tensor) -> Tensor:
        """Each token keeps the length that it has with the prompt alone, as in diffusers' pipeline."""
        if len(predictions) == 1:
            return predictions[0]
        height, width = predictions.shape[-2:]
        prompted = pack(predictions[1:])
        guided = pack(guide_classifier_free(predictions, self.guidance_scale)[None])
        rescaled = guided * (_measure_tokens(prompted) / _measure_tokens(guided))
        return unpack(rescaled, height, width)[0]


def _measure_tokens(tokens: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(tokens, dim=-1, keepdim=True))  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class QwenImage:
    """A loaded Qwen-Image pipeline. Its transformer counts positions from the middle of what it sees: of each tile."""

    pipe: QwenImagePipeline
    name = "qwen-image"
    defaults = FamilyDefaults(steps=50, guidance_scale=4.0, add_ons=("lora",))

    @property
    def shape(self) -> Shape:
        scale = self.pipe.vae_scale_factor
        channels = self.pipe.transformer.config.in_channels // PATCH**2
        return Shape(channels, scale, scale * PATCH, self.pipe.default_sample_size * scale)

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        scale = conditions.guidance_scale
        # One by one: padding is added after the text encoder, which need not know of it.
        branches = [prompt.list_branches(alone=scale == 1.0) for prompt in conditions.prompts]
        texts = [self._encode(text) for each in branches for text in each]
        return lambda stage: QwenImageReplica(self.pipe.transformer, texts, len(branches[0]), scale)

    def _encode(self, prompt: str) -> Tensor:
        device = find_execution_device(self.pipe)
        return self.pipe.encode_prompt(prompt, device, max_sequence_length=MAX_TEXT_TOKENS)[0][0]

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        kept = find_scheduler(self.pipe)
        shift = shift_by_tokens(kept, count_tokens(stage.denoise, PATCH))
        timing: dict[str, object] = {"sigmas": even_sigmas(stage.steps), "mu": shift}
        return SchedulerUse(stage.steps, timing, from_first=True, packing=Packing(pack, unpack))


def load(folder: Path, device: torch.device) -> QwenImage:
    """Load a folder with a Qwen-Image pipeline.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    return QwenImage(load_pipeline(QwenImagePipeline, folder, device))
