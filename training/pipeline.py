"""Text to pictures by one model: the bundled one, its full variant, or the first prototype."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.parts import load_denoiser, load_encoders, load_prototype_autoencoder, place
from training.progress import half_precision
from training.sampling import FEW_STEPS, FULL, PROTOTYPE, Recipe, sample
from training.text_encoder import embed_text

BATCH = 64


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One variant: text to pictures of 512 px, and pictures through its autoencoder and back."""

    name: str
    unet: UNet2DConditionModel
    vae: AutoencoderTiny | AutoencoderKL
    recipe: Recipe
    embed: Callable[[list[str]], Tensor]

    def generate(self, captions: list[str], seed: int, side: int = 64) -> Tensor:
        """Pictures in [-1, 1], (B, 3, 8 side, 8 side)."""
        text, empty = self.embed(captions), self.embed([""])
        latent = sample(self.unet, self.recipe, text, empty, side, seed)
        return self._decode(latent)

    @torch.no_grad()
    def _decode(self, latent: Tensor) -> Tensor:
        scaled = latent / self.vae.config["scaling_factor"]
        with half_precision(latent.device):
            parts = [self._decode_scaled(part) for part in torch.split(scaled, 16)]
        return torch.cat(parts).float().clamp(-1, 1)

    def _decode_scaled(self, latent: Tensor) -> Tensor:
        decode = cast(
            Callable[[Tensor], DecoderOutput],
            self.vae.decode,  # pyright: ignore[reportUnknownMemberType]
        )
        return decode(latent).sample

    @torch.no_grad()
    def restore(self, image: Tensor) -> Tensor:
        """Encode and decode, float32; (B, 3, H, W) in [-1, 1]."""
        return self._decode_scaled(self._encode(image)).clamp(-1, 1)

    def _encode(self, image: Tensor) -> Tensor:
        encoded = self.vae.encode(image)
        if isinstance(encoded, AutoencoderKLOutput):
            return cast(Tensor, encoded.latent_dist.mean)  # pyright: ignore[reportUnknownMemberType]
        return cast(AutoencoderTinyOutput, encoded).latents


def load_ours(
    folder: Path, device: torch.device, guidance_scale: float = FULL.guidance_scale
) -> list[Pipeline]:
    """The few-step variant from `unet/`, and the full one, under that guidance, where `unet_full/` stands beside it."""
    vae, text, tokenizer = load_encoders(folder, device)

    def embed(captions: list[str]) -> Tensor:
        return embed_text(text, tokenizer, captions, device)

    variants = [
        ("few steps", "unet", FEW_STEPS),
        ("full", "unet_full", replace(FULL, guidance_scale=guidance_scale)),
    ]
    return [
        Pipeline(name, _load_unet(folder / part, device), vae, recipe, embed)
        for name, part, recipe in variants
        if (folder / part).is_dir()
    ]


def load_prototype(folder: Path, states: Path, device: torch.device) -> Pipeline:
    """The first prototype; `states` is what `python -m training.teacher` wrote for the captions."""
    kept = torch.load(states, map_location=device, weights_only=True)
    rows = {sentence: row for row, sentence in enumerate(kept["sentences"])}

    def embed(captions: list[str]) -> Tensor:
        return kept["states"][[rows[caption] for caption in captions]].float()

    vae = place(load_prototype_autoencoder(folder / "vae"), device).eval()
    return Pipeline("prototype", _load_unet(folder / "unet", device), vae, PROTOTYPE, embed)


def _load_unet(folder: Path, device: torch.device) -> UNet2DConditionModel:
    return place(load_denoiser(folder), device, torch.channels_last).eval().requires_grad_(False)
