"""Style transfer: a style picture beside the canvas, and the source with its tones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.attention import View
from worker.engine.canvas import Rectangle
from worker.engine.scheduler import Scheduler

_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Style:
    """A style picture that every tile attends to (Hertz et al., "StyleAligned", 2024, section 3).

    It is noised for each step, so that its signal-to-noise ratio is that of the canvas.

    Args:
        latent: clean, (C, h, w), float32.
        noise: (C, h, w).
        strength: in (0, 1].
    """

    latent: Tensor
    noise: Tensor
    strength: float

    def look(self, scheduler: Scheduler, index: int) -> View:
        """The picture as the model sees it at step `index`."""
        noisy = scheduler.add_noise(self.latent, self.noise, index)
        area = Rectangle(0, 0, *self.latent.shape[1:])
        return View(scheduler.scale_input(noisy, index), scheduler.timesteps[index], area)


def tint(latent: Tensor, like: Tensor, strength: float) -> Tensor:
    """A clean latent (C, H, W), moved by a share towards the mean and deviation that each channel has in another (C, h, w).

    AdaIN (Huang and Belongie 2017, eq. 8) of latents, as Chung et al., "StyleID" (2024), eq. 8, begin with.
    """
    mean, deviation = _measure(latent)
    wanted_mean, wanted_deviation = _measure(like)
    return torch.lerp(latent, (latent - mean) / deviation * wanted_deviation + wanted_mean, strength)


def _measure(latent: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of each channel, (C, 1, 1)."""
    variance, mean = torch.var_mean(latent, dim=(1, 2), correction=0, keepdim=True)
    return mean, (variance + _EPSILON).sqrt()
