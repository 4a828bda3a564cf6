"""What Stable Diffusion and Stable Diffusion XL share: a UNet conditioned on text, tile by tile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from worker.adapters.extras.control_net import StageControlNet
from worker.adapters.extras.ip_adapter import ImagePrompt
from worker.adapters.families.guidance import guide_classifier_free, pick_branches, pick_states
from worker.engine.ensemble import Batch

AddedConditions = Callable[[Batch], dict[str, Tensor]]
"""The UNet's `added_cond_kwargs`, first axis B."""


def no_added_conditions(batch: Batch) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, slots=True)
class UNetReplica:
    """One UNet with its prompts.

    Args:
        states: text states of each prompt and branch, (prompts, branches, tokens, width).
        added_conditions: of each tile, such as SDXL's micro-conditioning.
        image_prompt: an IP-Adapter with its picture, or none.
        control_net: with its image, or none.
        timestep_cond: embedding of the guidance scale, for a UNet into which guidance was distilled, (1, width).
    """

    unet: UNet2DConditionModel
    states: Tensor
    guidance_scale: float
    image_prompt: ImagePrompt
    timestep_cond: Tensor | None = None
    added_conditions: AddedConditions = no_added_conditions
    control_net: StageControlNet | None = None

    @property
    def branches(self) -> int:
        return self.states.shape[1]

    def predict(self, batch: Batch) -> Tensor:
        self.image_prompt.activate()
        states = pick_states(self.states, batch.queries)
        inputs, added = batch.inputs.to(states.dtype), self.added_conditions(batch)
        down, middle = None, None
        if self.control_net is not None:
            crops = batch.crops.to(states.dtype)
            down, middle = self.control_net.predict_residuals(crops, states, added, batch)
        return self.unet(
            inputs,
            batch.timesteps,
            encoder_hidden_states=states,
            timestep_cond=self.timestep_cond,
            added_cond_kwargs=added | self._image_embeds(batch.branches),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].float()

    def _image_embeds(self, branches: Sequence[int]) -> dict[str, list[Tensor]]:
        embeds = [pick_branches(each, branches) for each in self.image_prompt.image_embeds]
        return {"image_embeds": embeds} if embeds else {}

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)
