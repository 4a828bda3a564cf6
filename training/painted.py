"""Leads that the denoiser painted: what an upscaler is given in use, where nobody knows the larger picture."""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.latents import Captions, decode_latents, encode_pixels
from training.pairs import enlarge
from training.sampling import FEW_STEPS, sample

SCALE = 4  # by which the bundled model's lead is enlarged
_SIDE = 64  # of a painted picture, latent pixels
_MARGIN = 2  # latent pixels of the lead around a window, of which its edges are made
_BATCH = 64


@dataclass(frozen=True, slots=True)
class PaintedWindows:
    """Windows of painted pictures.

    Attributes:
        leads: (B, C, side, side), of the enlarged pictures.
        pictures: (B, 3, 8 side / `SCALE`, 8 side / `SCALE`), before that, in [-1, 1].
        owners: (B,), the pictures whose captions were painted.
    """

    leads: Tensor
    pictures: Tensor
    owners: Tensor


@dataclass(frozen=True, slots=True)
class PaintedLeads:
    """Whole painted pictures.

    Attributes:
        latents: (N, C, side, side), unit deviation, bfloat16.
        owners: (N,).
        vae: decodes them.
    """

    latents: Tensor
    owners: Tensor
    vae: AutoencoderTiny

    @torch.no_grad()
    def draw(self, count: int, side: int) -> PaintedWindows:
        """Random windows that become `side` latent pixels."""
        chosen = torch.randint(len(self.latents), (count,), device=self.latents.device)
        extent = side // SCALE + 2 * _MARGIN
        top, left = (int(each) for each in torch.randint(self.latents.shape[-1] - extent + 1, (2,)))
        seen = self.latents[chosen, :, top : top + extent, left : left + extent].float()
        pictures = decode_latents(self.vae, seen)
        leads = encode_pixels(self.vae, enlarge(pictures, SCALE))
        return PaintedWindows(
            _inner(leads, _MARGIN * SCALE), _inner(pictures, 8 * _MARGIN), self.owners[chosen]
        )


def _inner(image: Tensor, margin: int) -> Tensor:
    return image[..., margin:-margin, margin:-margin]


def paint_leads(
    denoiser: UNet2DConditionModel, vae: AutoencoderTiny, captions: Captions, count: int, seed: int
) -> PaintedLeads:
    """Pictures of random captions, by the few-step recipe."""
    device = captions.states.device
    owners = torch.randint(len(captions.categories), (count,), device=device)
    text, empty = captions.draw(owners, empty_share=0.0), captions.empty(1)
    latents = [
        sample(denoiser, FEW_STEPS, text[start : start + _BATCH], empty, _SIDE, seed + start).bfloat16()
        for start in range(0, count, _BATCH)
    ]
    return PaintedLeads(torch.cat(latents), owners, vae)
