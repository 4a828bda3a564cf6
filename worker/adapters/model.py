"""What the worker gets from an adapter."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from api_schemas.catalog import ModelCard
from worker.engine.generate import Pipeline


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """RGB in [0, 1] = weight (3, C) @ latent (C, h, w) + bias (3,)."""

    weight: Tensor
    bias: Tensor


class LoadedModel(Protocol):
    """Weights in memory, ready for any prompt."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def preview_map(self) -> PreviewMap: ...

    def pipeline(
        self, prompt: str, negative_prompt: str, guidance_scale: float, steps: int, num_modules: int
    ) -> Pipeline:
        """Encode the prompt and set up a fresh scheduler.

        Args:
            guidance_scale: 1.0 is off: one prediction a tile instead of two.
        """
        ...
