"""Between a canvas' latent and the autoencoder's own: each pipeline of diffusers has its formula."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentScaling:
    """own = canvas * spread / factor + shift, each a number or one for each channel, (C, 1, 1)."""

    factor: float = 1.0
    spread: Tensor | float = 1.0
    shift: Tensor | float = 0.0

    def undo(self, canvas: Tensor) -> Tensor:
        """As a pipeline does before it decodes."""
        return canvas * self.spread / self.factor + self.shift

    def apply(self, own: Tensor) -> Tensor:
        """As an image-to-image pipeline does after it encoded; float32."""
        return (own.float() - self.shift) * self.factor / self.spread


def read_scaling(kind: type[DiffusionPipeline], vae: ModelMixin) -> LatentScaling:
    """The scaling that a pipeline of this class derives from the autoencoder's configuration."""
    return next(_FORMULAS[each.__name__] for each in kind.__mro__ if each.__name__ in _FORMULAS)(vae)


def _by_factor(vae: ModelMixin) -> LatentScaling:
    return LatentScaling(vae.config["scaling_factor"])


def _by_factor_and_shift(vae: ModelMixin) -> LatentScaling:
    return LatentScaling(vae.config["scaling_factor"], shift=vae.config["shift_factor"])


def _by_factor_and_levels(vae: ModelMixin) -> LatentScaling:
    """Both levels or none, as Playground 2.5 has them."""
    if None in (vae.config.get("latents_mean"), vae.config.get("latents_std")):
        return _by_factor(vae)
    return LatentScaling(vae.config["scaling_factor"], _read(vae, "latents_std"), _read(vae, "latents_mean"))


def _by_levels(vae: ModelMixin) -> LatentScaling:
    return LatentScaling(spread=_read(vae, "latents_std"), shift=_read(vae, "latents_mean"))


def _by_statistics(vae: ModelMixin) -> LatentScaling:
    """Of patches, which the autoencoder counted in training."""
    norm = vae.get_submodule("bn")
    mean, variance = (norm.get_buffer(name).float() for name in ("running_mean", "running_var"))
    spread = (variance + vae.config["batch_norm_eps"]).sqrt()
    return LatentScaling(spread=spread[:, None, None], shift=mean[:, None, None])


def _read(vae: ModelMixin, field: str) -> Tensor:
    return torch.tensor(vae.config[field], device=vae.device, dtype=torch.float32)[:, None, None]


_FORMULAS: dict[str, Callable[[ModelMixin], LatentScaling]] = {
    "StableDiffusionPipeline": _by_factor,
    "StableDiffusionXLPipeline": _by_factor_and_levels,
    "StableDiffusion3Pipeline": _by_factor_and_shift,
    "FluxPipeline": _by_factor_and_shift,
    "Flux2Pipeline": _by_statistics,
    "Flux2KleinPipeline": _by_statistics,
    "PixArtSigmaPipeline": _by_factor,
    "SanaPipeline": _by_factor,
    "QwenImagePipeline": _by_levels,
    "ZImagePipeline": _by_factor_and_shift,
}
