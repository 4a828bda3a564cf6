"""The noise schedule and the few formulas of v-prediction."""

from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor


class Schedule(TypedDict):
    """Options of diffusers' schedulers."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: Literal["scaled_linear"]
    prediction_type: Literal["v_prediction"]
    rescale_betas_zero_snr: bool
    steps_offset: int


# Shared by training and by every scheduler that we ship; zero terminal SNR (Lin et al. 2024) makes tone follow the text.
SCHEDULE = Schedule(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    steps_offset=1,  # asked for by StableDiffusionPipeline; nothing where the spacing is trailing
)


@dataclass(frozen=True, slots=True)
class Noising:
    """alpha and sigma by timestep, (1000,), alpha^2 + sigma^2 = 1."""

    alphas: Tensor
    sigmas: Tensor

    def at(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of each sample, (B, 1, 1, 1)."""
        return self.alphas[timestep].view(-1, 1, 1, 1), self.sigmas[timestep].view(-1, 1, 1, 1)

    def add(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The noisy latent."""
        alpha, sigma = self.at(timestep)
        return alpha * latent + sigma * noise

    def velocity(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The target v (Salimans & Ho 2022, appendix D)."""
        alpha, sigma = self.at(timestep)
        return alpha * noise - sigma * latent

    def weight(self, timestep: Tensor) -> Tensor:
        """Of the error of v: min-SNR-5 (Hang et al. 2023), plus one on both sides, so that pure noise counts too.

        Without it most of the effort goes into fine noise, which a small network never gets right.
        """
        ratio = (self.alphas[timestep] / self.sigmas[timestep].clamp(min=1e-4)).square()
        return (ratio.clamp(max=5) + 1) / (ratio + 1)

    def clean(self, noisy: Tensor, velocity: Tensor, timestep: Tensor) -> Tensor:
        """The clean latent that a predicted v stands for."""
        alpha, sigma = self.at(timestep)
        return alpha * noisy - sigma * velocity


def build_noising(device: torch.device) -> Noising:
    """The schedule's alphas and sigmas, as diffusers computes them."""
    cumulative = DDPMScheduler(**SCHEDULE, clip_sample=False).alphas_cumprod.clamp(0, 1).to(device)
    return Noising(cumulative.sqrt(), (1 - cumulative).sqrt())
