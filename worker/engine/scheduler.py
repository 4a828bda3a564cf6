"""What the loop needs of a scheduler. Adapters say how each of diffusers' schedulers does it."""

from typing import Protocol

import torch
from torch import Tensor

from worker.engine.attention import Clock

Scalar = bool | int | float | str | None
Scalars = dict[str, "Scalar | list[Scalar]"]


class Scheduler(Protocol):
    """Advances a canvas (C, H, W), float32, from noise to a clean latent, one step after the other.

    `index` counts the steps of this scheduler from 0, those that `skip` left out not counted.
    Nothing that is passed in is written to, and what `step` is given may be kept: a solver of higher
    order looks back at earlier canvases, so the loop never overwrites one.
    """

    @property
    def timesteps(self) -> Tensor:
        """The model's clock at each step, on the device; a solver may take more of them than steps were asked for."""
        ...

    @property
    def initial_scale(self) -> float:
        """Standard deviation of the noise that the first step expects."""
        ...

    def skip(self, steps: int) -> None:
        """Leave out the first of the steps that were asked for, before anything else is done."""
        ...

    def add_noise(self, clean: Tensor, noise: Tensor, index: int = 0) -> Tensor:
        """A clean canvas as noisy as step `index` expects it, which is the next; clean after the last. Both (C, H, W)."""
        ...

    def scale_input(self, latent: Tensor, index: int) -> Tensor:
        """The canvas as the model wants to see it."""
        ...

    def match_noise(self, index: int, share: float) -> Clock:
        """The clock of a scaled canvas of which only this share of the noise's deviation is left."""
        ...

    def estimate_clean(self, latent: Tensor, prediction: Tensor, index: int) -> Tensor:
        """The clean latent x̂0 that a prediction implies for an unscaled latent of its shape."""
        ...

    def guide_clean(self, prediction: Tensor, change: Tensor, index: int) -> Tensor:
        """The prediction that implies a clean latent changed by `change`."""
        ...

    def step(self, prediction: Tensor, index: int, latent: Tensor, generator: torch.Generator) -> Tensor:
        """The canvas after step `index`, a new tensor; the scheduler's own noise comes from `generator`."""
        ...

    def capture(self) -> tuple[dict[str, Tensor], Scalars]:
        """All that it remembers at this moment, as tensors that later steps leave alone, and JSON scalars."""
        ...

    def restore(self, tensors: dict[str, Tensor], scalars: Scalars) -> None:
        """Put back what `capture` took from a scheduler that was set up alike."""
        ...
