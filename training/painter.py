"""A model ready to paint: the bundled one, its full variant, or the first prototype."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.denoiser import load_denoiser
from training.latents import load_encoders
from training.parts import require_part
from training.progress import half_precision
from training.sampling import FEW_STEPS, FULL, PROTOTYPE, Recipe, sample
from training.text_encoder import embed_text

BATCH = 64


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """One variant: text to pictures of 512 px, and pictures through its autoencoder and back."""

    name: str
    unet: UNet2DConditionModel
    vae: AutoencoderTiny | AutoencoderKL
    recipe: Recipe
    embed: Callable[[list[str]], Tensor]

    def paint(self, captions: list[str], seed: int, side: int = 64) -> Tensor:
        """Pictures in [-1, 1], (B, 3, 8 side, 8 side)."""
        text, empty = self.embed(captions), self.embed([""])
        latent = sample(self.unet, self.recipe, text, empty, side, seed)
        return self._decode(latent)

    @torch.no_grad()
    def _decode(self, latent: Tensor) -> Tensor:
        with half_precision(latent.device):
            parts = [
                self.vae.decode(part / self.vae.config.scaling_factor).sample for part in latent.split(16)
            ]
        return torch.cat(parts).float().clamp(-1, 1)

    @torch.no_grad()
    def restore(self, image: Tensor) -> Tensor:
        """Encode and decode, float32; (B, 3, H, W) in [-1, 1]."""
        encoded = self.vae.encode(image)
        latent = encoded.latent_dist.mean if isinstance(self.vae, AutoencoderKL) else encoded.latents
        return self.vae.decode(latent).sample.clamp(-1, 1)


def load_ours(
    folder: Path, device: torch.device, guidance_scale: float = FULL.guidance_scale
) -> list[Autoencoder]:
    """The few-step variant from `unet/`, and the full one, under that guidance, where `unet_full/` stands beside it."""
    vae, text, tokenizer = load_encoders(folder, device)

    def embed(captions: list[str]) -> Tensor:
        return embed_text(text, tokenizer, captions, device)

    variants = [
        ("few steps", "unet", FEW_STEPS),
        ("full", "unet_full", replace(FULL, guidance_scale=guidance_scale)),
    ]
    return [
        Autoencoder(name, _load_unet(folder / part, device), vae, recipe, embed)
        for name, part, recipe in variants
        if (folder / part).is_dir()
    ]


def load_prototype(folder: Path, states: Path, device: torch.device) -> Autoencoder:
    """The first prototype; `states` is what `python -m training.teacher` wrote for the captions."""
    kept = torch.load(states, map_location=device, weights_only=True)
    rows = {sentence: row for row, sentence in enumerate(kept["sentences"])}

    def embed(captions: list[str]) -> Tensor:
        return kept["states"][[rows[caption] for caption in captions]].float()

    vae = (
        AutoencoderKL.from_pretrained(require_part(folder / "vae"), torch_dtype=torch.float32)
        .to(device)
        .eval()
    )
    return Autoencoder("prototype", _load_unet(folder / "unet", device), vae, PROTOTYPE, embed)


def _load_unet(folder: Path, device: torch.device) -> UNet2DConditionModel:
    return load_denoiser(folder).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
