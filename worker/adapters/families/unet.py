"""What Stable Diffusion and Stable Diffusion XL share: a UNet conditioned on text, tile by tile."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from worker.adapters.extras.control_net import Guide
from worker.adapters.families.guidance import guide_classifier_free, pick_branches
from worker.engine.ensemble import Batch

Tell = Callable[[Batch], dict[str, Tensor]]
"""(tiles, branches) -> what a UNet's `added_cond_kwargs` say of each, first axis B."""


def tell_nothing(batch: Batch) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, slots=True)
class UNetReplica:
    """One UNet with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width).
        tell: further conditions of each tile, such as SDXL's size embeddings.
        seen: of an IP-Adapter's picture, each (branches, 1, ...).
        control: a ControlNet with its picture.
        strength: embedding of the guidance scale, for a UNet into which guidance was distilled, (1, width).
    """

    unet: UNet2DConditionModel
    states: Tensor
    guidance_scale: float
    strength: Tensor | None = None
    tell: Tell = tell_nothing
    seen: tuple[Tensor, ...] = ()
    control: Guide | None = None

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(self, batch: Batch) -> Tensor:
        states = pick_branches(self.states, batch.branches)
        inputs, told = batch.crops.to(states.dtype), self.tell(batch)
        down, middle = None, None
        if self.control is not None:
            down, middle = self.control.steer(inputs, states, told, batch)
        return self.unet(
            inputs,
            batch.timesteps,
            encoder_hidden_states=states,
            timestep_cond=self.strength,
            added_cond_kwargs=told | self._show(batch.branches),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].float()

    def _show(self, branches: Sequence[int]) -> dict[str, list[Tensor]]:
        return {"image_embeds": [pick_branches(each, branches) for each in self.seen]} if self.seen else {}

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)
