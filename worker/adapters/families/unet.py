"""What Stable Diffusion and Stable Diffusion XL share: a UNet conditioned on text, tile by tile."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from worker.adapters.extras.control_net import Guide
from worker.adapters.extras.ip_adapter import ImagePrompt
from worker.adapters.families.guidance import guide_classifier_free, pick_branches
from worker.engine.grid import Tile

Tell = Callable[[Sequence[Tile], Sequence[int]], dict[str, Tensor]]
"""(tiles, branches) -> what a UNet's `added_cond_kwargs` say of each, first axis B."""


def tell_nothing(tiles: Sequence[Tile], branches: Sequence[int]) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, slots=True)
class UNetReplica:
    """One UNet with one prompt.

    Args:
        states: text states of each branch, (branches, tokens, width).
        tell: further conditions of each tile, such as SDXL's size embeddings.
        image_prompt: an IP-Adapter with its picture, or none.
        control: a ControlNet with its picture.
        strength: embedding of the guidance scale, for a UNet into which guidance was distilled, (1, width).
    """

    unet: UNet2DConditionModel
    states: Tensor
    guidance_scale: float
    image_prompt: ImagePrompt
    strength: Tensor | None = None
    tell: Tell = tell_nothing
    control: Guide | None = None

    @property
    def branches(self) -> int:
        return len(self.states)

    def predict(
        self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
    ) -> Tensor:
        self.image_prompt.activate()
        states = pick_branches(self.states, branches)
        inputs, told = crops.to(states.dtype), self.tell(tiles, branches)
        down, middle = None, None
        if self.control is not None:
            down, middle = self.control.steer(inputs, timestep, states, told, tiles)
        return self.unet(
            inputs,
            timestep,
            encoder_hidden_states=states,
            timestep_cond=self.strength,
            added_cond_kwargs=told | self._image_embeds(branches),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].float()

    def _image_embeds(self, branches: Sequence[int]) -> dict[str, list[Tensor]]:
        embeds = [pick_branches(each, branches) for each in self.image_prompt.image_embeds]
        return {"image_embeds": embeds} if embeds else {}

    def guide(self, predictions: Tensor) -> Tensor:
        return guide_classifier_free(predictions, self.guidance_scale)
