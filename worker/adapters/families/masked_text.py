"""Transformers with a mask of their text's padding, and with a variance beside their prediction."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.adapters.families.guidance import guide_classifier_free, pick_states
from worker.engine.ensemble import Batch

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
EncodedMaskedPrompt = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""(prompt, its mask, negative prompt, its mask), as diffusers' `encode_prompt` returns them."""


@dataclass(frozen=True, slots=True)
class MaskedTextReplica:
    """One transformer with its prompts.

    Args:
        transformer: (crops, timestep of each, states, mask) -> (B, 2 C, h, w) or (B, C, h, w).
        states: text states of each prompt and branch, (prompts, branches, tokens, width).
        mask: 1 where a token is no padding, (prompts, branches, tokens).
    """

    transformer: Predict
    states: Tensor
    mask: Tensor
    guidance_scale: float

    @property
    def branches(self) -> int:
        return self.states.shape[1]

    def predict(self, batch: Batch) -> Tensor:
        states, mask = (pick_states(each, batch.queries) for each in (self.states, self.mask))
        prediction = self.transformer(batch.crops.to(states.dtype), batch.timesteps, states, mask)
        return prediction[:, : batch.crops.shape[1]].float()  # the other half is a learned variance, unused

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)
