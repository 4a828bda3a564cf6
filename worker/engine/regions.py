"""Regions: areas of a canvas with prompts of their own, and how their predictions of one tile become one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """How much each prompt counts at each pixel of a canvas.

    Prompts are numbered: 0 is the request's own, which fills what the regions leave; the regions' follow.
    The weights lie on the canvas, not on tiles, so whichever tiles cover a pixel, its prompts are blended alike.

    Args:
        weights: of each prompt, (prompts, H, W), float32; their sum is one everywhere.
        seeds: of each prompt's own initial noise; None: the canvas' noise.
        canvas: that they lie on.
        crossed: where each weight is above zero, (prompts, H, W), on the host, which asks for every tile.
    """

    weights: Tensor
    seeds: tuple[int | None, ...]
    canvas: Plane
    crossed: Tensor

    @classmethod
    def lay(cls, weights: Tensor, seeds: Sequence[int | None], canvas: Plane) -> "Regions":
        return cls(weights, tuple(seeds), canvas, (weights > 0).cpu())

    def on(self, device: torch.device) -> "Regions":
        """The same, with the weights on a device."""
        return replace(self, weights=self.weights.to(device))

    def find_prompts(self, tile: Rectangle) -> list[int]:
        """The prompts that count somewhere in a tile: at least one. The others need no prediction of it."""
        crossed = self.canvas.gather(self.crossed, tile).flatten(1).any(1)
        return [prompt for prompt in range(len(crossed)) if crossed[prompt]]

    def blend(self, tile: Rectangle, prompts: Sequence[int], predictions: Sequence[Tensor]) -> Tensor:
        """One prediction (C, h, w) of a tile out of those under each of its prompts, guidance applied.

        Under one prompt it is that prediction, bit for bit. The weights add up to one, so to fuse what this
        returns is to fuse every prediction under its own mask.
        """
        if len(prompts) == 1:
            return predictions[0]
        blended = torch.zeros_like(predictions[0])
        for prompt, prediction in zip(prompts, predictions, strict=True):
            blended += self.canvas.gather(self.weights[prompt], tile) * prediction
        return blended

    def mix_noise(self, noise: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        """Initial noise (C, H, W): where a region with a seed counts most, that seed's in place of the canvas'.

        Chosen, not blended: a weighted mean of two noises has less variance than the scheduler expects, and the
        noise of every pixel outside a region stays what it is without the region.

        Args:
            draw: the noise of a seed, of the same shape.
        """
        owners = self.weights.argmax(0).to(noise.device)
        for prompt, seed in enumerate(self.seeds):
            if seed is not None:
                noise = torch.where(owners == prompt, draw(seed), noise)
        return noise
