"""The bank: crops of the training pictures, encoded once, and the states of their captions."""

import random
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]
from transformers import CLIPTextModel, CLIPTokenizer

from training.augment import UPRIGHT, CropRange, balance, sample_crop
from training.corpus import read_names, read_neighbours, vary
from training.dataset import Picture
from training.progress import half_precision
from training.text_encoder import embed_text

# 512 px crops are mostly native. There are no native 1024 px crops: those are enlarged, so that a tileable
# picture of 512 px does not simply repeat inside of one.
ZOOMS = {512: CropRange(low=0.7, high=1.0, native=0.8), 1024: CropRange(low=0.5, high=0.8, native=0.0)}
_LARGE_PX = 1024  # the short side of a photograph that was not reduced
# Of each caption: as it is, three versions, three names of the category or words near them, and the best known name.
PHRASINGS = 8
_KNOWN_AS = (0, 0, 0, 0, 7, 7, 7, 7)  # the phrasing that a denoiser knows best of those that mean the same


@dataclass(frozen=True, slots=True)
class Bank:
    """Latents of one crop size.

    Attributes:
        latents: (N, C, side, side), unit deviation, bfloat16.
        owners: (N,), the picture of each.
    """

    latents: Tensor
    owners: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Random latents and their owners."""
        chosen = torch.randint(len(self.latents), (count,), device=self.latents.device)
        return self.latents[chosen], self.owners[chosen]


@dataclass(frozen=True, slots=True)
class Captions:
    """The text states and the kind of each picture.

    Attributes:
        states: (P * PHRASINGS + 1, 32, width), of the text; the last row is the empty caption.
        views: (P,), whether it shows something far away, with an up and a down.
        categories: P of them.
    """

    states: Tensor
    views: Tensor
    categories: list[str]

    def draw(self, owners: Tensor, empty_share: float) -> Tensor:
        """A random phrasing of each picture's caption, or the empty caption."""
        rows = owners * PHRASINGS + torch.randint_like(owners, PHRASINGS)
        empty = torch.rand(len(rows), device=rows.device) < empty_share
        return self.states[torch.where(empty, len(self.states) - 1, rows)].float()

    def draw_pairs(self, owners: Tensor) -> tuple[Tensor, Tensor]:
        """A random phrasing of each picture's caption, and the phrasing by which its meaning is known best."""
        phrasing = torch.randint_like(owners, PHRASINGS)
        known = torch.tensor(_KNOWN_AS, device=owners.device)[phrasing]
        rows = owners * PHRASINGS
        return self.states[rows + phrasing].float(), self.states[rows + known].float()

    def empty(self, count: int) -> Tensor:
        """The empty caption, repeated."""
        return self.states[-1:].float().expand(count, -1, -1)


@torch.no_grad()
def encode_bank(
    vae: AutoencoderTiny,
    images: list[Tensor],
    pictures: list[Picture],
    side_px: int,
    count: int,
    seed: int,
    views: float | None = None,
) -> Bank:
    """Encode `count` random crops, categories balanced; `views` as of `balance`."""
    rng = random.Random(seed)
    owners = rng.choices(range(len(pictures)), weights=balance(pictures, views), k=count)
    batch = max(1, 64 * 512**2 // side_px**2)
    latents: list[Tensor] = []
    for start in range(0, count, batch):
        chosen = owners[start : start + batch]
        crops = torch.stack(
            [
                sample_crop(images[i], pictures[i], side_px, _choose_zoom(images[i], side_px), rng)
                for i in chosen
            ]
        )
        latents.append(encode_pixels(vae, crops).bfloat16())
    return Bank(torch.cat(latents).clone(), torch.tensor(owners, device=latents[0].device))


def _choose_zoom(image: Tensor, side_px: int) -> CropRange:
    """Of a large photograph, anything up to the whole: its native crops show no scene."""
    shortest = min(image.shape[1:])
    if shortest <= _LARGE_PX:
        return ZOOMS[side_px]
    return CropRange(low=1.0, high=shortest / side_px, native=0.0)


def encode_pixels(vae: AutoencoderTiny, crops: Tensor) -> Tensor:
    """Pictures in [-1, 1] to scaled latents, (B, C, H/8, W/8)."""
    with half_precision(crops.device):
        latent = vae.encoder(crops.contiguous(memory_format=torch.channels_last))
    return latent.float() * vae.config["scaling_factor"]


@torch.no_grad()
def decode_latents(vae: AutoencoderTiny, latent: Tensor) -> Tensor:
    """Scaled latents to pictures in [-1, 1]."""
    with half_precision(latent.device):
        return vae.decoder(latent / vae.config["scaling_factor"]).float().clamp(-1, 1)


def decode_to_learn(vae: AutoencoderTiny, latent: Tensor) -> Tensor:
    """Scaled latents to pictures, not clamped; gradients flow, and the decoder's activations are recomputed for them."""

    def decode(kept: Tensor) -> Tensor:
        return vae.decoder(kept / vae.config["scaling_factor"])

    return cast(Tensor, checkpoint(decode, latent, use_reentrant=False))


def encode_captions(
    model: CLIPTextModel, tokenizer: CLIPTokenizer, pictures: list[Picture], device: torch.device, seed: int
) -> Captions:
    """The states of every phrasing of every picture's caption."""
    rng = random.Random(seed)
    sentences = [*(phrasing for picture in pictures for phrasing in list_phrasings(picture, rng)), ""]
    parts = [
        embed_text(model, tokenizer, sentences[i : i + 512], device) for i in range(0, len(sentences), 512)
    ]
    categories = [picture.category for picture in pictures]
    views = torch.tensor([category in UPRIGHT for category in categories], device=device)
    return Captions(torch.cat(parts).bfloat16().clone(), views, categories)


def list_phrasings(picture: Picture, rng: random.Random) -> list[str]:
    """The `PHRASINGS` of a picture's caption; the colour of a painted one is in each of them."""
    paint = picture.caption.split()[:1] if picture.tint else []
    versions = [vary(picture.caption, rng, frozenset(paint)) for _ in range(3)]
    names = read_names().get(picture.category, [picture.category.replace("_", " ")])
    near = read_neighbours().get(picture.category, [])
    chosen = [*rng.choices([*names, *near], k=3), names[0]]
    return [picture.caption, *versions, *(" ".join([*paint, name]) for name in chosen)]
