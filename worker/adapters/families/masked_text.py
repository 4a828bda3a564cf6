"""Transformers that are told which of their text tokens are filling, and that answer with a variance too."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.adapters.families.guidance import guide_classifier_free, pick_branches
from worker.engine.ensemble import Batch

Ask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class MaskedTextReplica:
    """One transformer with one prompt.

    Args:
        ask: (crops, timestep of each, states, mask) -> (B, 2 C, h, w) or (B, C, h, w).
        states: text states of each branch, (branches, tokens, width).
        mask: 1 where a token is no filling, (branches, tokens).
    """

    ask: Ask
    states: Tensor
    mask: Tensor
    guidance_scale: float

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(self, batch: Batch) -> Tensor:
        states, mask = (pick_branches(each, batch.branches) for each in (self.states, self.mask))
        prediction = self.ask(batch.crops.to(states.dtype), batch.timesteps, states, mask)
        return prediction[:, : batch.crops.shape[1]].float()  # the other half is a learned variance, unused

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)
