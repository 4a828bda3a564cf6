"""A picture's latent as each family's own image-to-image pipeline scales it, without its random part."""

import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor


def encode_theirs(pipe: DiffusionPipeline, image: Tensor) -> Tensor:
    """(C, h, w) of an RGB image in [-1, 1], (3, H, W)."""
    return _FORMULAS[type(pipe).__name__](pipe.vae, image[None])[0]


def _mean(vae: torch.nn.Module, image: Tensor) -> Tensor:
    """diffusers' `retrieve_latents` with the mode of the distribution."""
    encoded = vae.encode(image)
    for name in ("latents", "latent"):
        if hasattr(encoded, name):
            return getattr(encoded, name)
    return encoded.latent_dist.mode()


def _scale(vae: torch.nn.Module, image: Tensor) -> Tensor:
    """StableDiffusionImg2ImgPipeline, SanaSprintImg2ImgPipeline."""
    return vae.config.scaling_factor * _mean(vae, image)


def _scale_xl(vae: torch.nn.Module, image: Tensor) -> Tensor:
    """StableDiffusionXLImg2ImgPipeline."""
    levels = [vae.config.get(name) for name in ("latents_mean", "latents_std")]
    if None in levels:
        return _scale(vae, image)
    center, spread = (torch.tensor(level).view(1, 4, 1, 1) for level in levels)
    return (_mean(vae, image) - center) * vae.config.scaling_factor / spread


def _shift(vae: torch.nn.Module, image: Tensor) -> Tensor:
    """StableDiffusion3Img2ImgPipeline, FluxImg2ImgPipeline, ZImageImg2ImgPipeline."""
    return (_mean(vae, image) - vae.config.shift_factor) * vae.config.scaling_factor


def _normalise_patches(vae: torch.nn.Module, image: Tensor) -> Tensor:
    """Flux2Pipeline's `_encode_vae_image`."""
    patches = F.pixel_unshuffle(_mean(vae, image), 2)
    spread = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    return (patches - vae.bn.running_mean[:, None, None]) / spread[:, None, None]


def _normalise(vae: torch.nn.Module, image: Tensor) -> Tensor:
    """QwenImageImg2ImgPipeline."""
    center, spread = (
        torch.tensor(level)[:, None, None] for level in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (_mean(vae, image[:, :, None])[:, :, 0] - center) / spread


_FORMULAS = {
    "StableDiffusionPipeline": _scale,
    "StableDiffusionXLPipeline": _scale_xl,
    "StableDiffusion3Pipeline": _shift,
    "FluxPipeline": _shift,
    "Flux2Pipeline": _normalise_patches,
    "Flux2KleinPipeline": _normalise_patches,
    "PixArtSigmaPipeline": _scale,
    "SanaPipeline": _scale,
    "QwenImagePipeline": _normalise,
    "ZImagePipeline": _shift,
}
