"""The bank: crops of the training pictures, encoded once, and the states of their captions."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from training.augment import UPRIGHT, CropRange, balance, sample_crop
from training.corpus import read_names, read_neighbours, vary
from training.dataset import Picture
from training.parts import require_part
from training.progress import half_precision
from training.text_encoder import embed_text

# 512 px crops are mostly native. There are no native 1024 px crops: those are enlarged, so that a tileable
# picture of 512 px does not simply repeat inside of one.
ZOOMS = {512: CropRange(low=0.7, high=1.0, native=0.8), 1024: CropRange(low=0.5, high=0.8, native=0.0)}
# Each caption's dresses: as it is, three versions, three names of the category or words near them, and the name
# that is known best.
DRESSES = 8
_KNOWN_AS = (0, 0, 0, 0, 7, 7, 7, 7)  # the dress that a denoiser knows best of those that mean the same


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
    """What is said of each picture.

    Attributes:
        states: (P * DRESSES + 1, 32, width), of the text; the last row is the empty caption.
        views: (P,), whether it shows something far away, with an up and a down.
        categories: P of them.
    """

    states: Tensor
    views: Tensor
    categories: list[str]

    def draw(self, owners: Tensor, empty_share: float) -> Tensor:
        """A random dress of each picture's caption, or the empty caption."""
        rows = owners * DRESSES + torch.randint_like(owners, DRESSES)
        empty = torch.rand(len(rows), device=rows.device) < empty_share
        return self.states[torch.where(empty, len(self.states) - 1, rows)].float()

    def draw_pairs(self, owners: Tensor) -> tuple[Tensor, Tensor]:
        """A random dress of each picture's caption, and the dress by which its meaning is known best."""
        dress = torch.randint_like(owners, DRESSES)
        known = torch.tensor(_KNOWN_AS, device=owners.device)[dress]
        rows = owners * DRESSES
        return self.states[rows + dress].float(), self.states[rows + known].float()

    def empty(self, count: int) -> Tensor:
        """The empty caption, repeated."""
        return self.states[-1:].float().expand(count, -1, -1)


@torch.no_grad()
def encode_bank(
    vae: AutoencoderTiny, images: list[Tensor], pictures: list[Picture], side_px: int, count: int, seed: int
) -> Bank:
    """Encode `count` random crops, categories balanced."""
    rng = random.Random(seed)
    owners = rng.choices(range(len(pictures)), weights=balance(pictures), k=count)
    batch = max(1, 64 * 512**2 // side_px**2)
    latents = []
    for start in range(0, count, batch):
        chosen = owners[start : start + batch]
        crops = torch.stack(
            [sample_crop(images[i], pictures[i], side_px, ZOOMS[side_px], rng) for i in chosen]
        )
        latents.append(encode_pixels(vae, crops).bfloat16())
    return Bank(torch.cat(latents).clone(), torch.tensor(owners, device=latents[0].device))


def encode_pixels(vae: AutoencoderTiny, crops: Tensor) -> Tensor:
    """Pictures in [-1, 1] to scaled latents, (B, C, H/8, W/8)."""
    with half_precision(crops.device):
        latent = vae.encoder(crops.contiguous(memory_format=torch.channels_last))
    return latent.float() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: AutoencoderTiny, latent: Tensor) -> Tensor:
    """Scaled latents to pictures in [-1, 1]."""
    with half_precision(latent.device):
        return vae.decoder(latent / vae.config.scaling_factor).float().clamp(-1, 1)


def decode_to_learn(vae: AutoencoderTiny, latent: Tensor) -> Tensor:
    """Scaled latents to pictures, not clamped; gradients flow, and what they need of the decoder is made anew."""
    return checkpoint(lambda kept: vae.decoder(kept / vae.config.scaling_factor), latent, use_reentrant=False)


def encode_captions(
    model: CLIPTextModel, tokenizer: CLIPTokenizer, pictures: list[Picture], device: torch.device, seed: int
) -> Captions:
    """The states of every dress of every picture's caption."""
    rng = random.Random(seed)
    sentences = [*(dressed for picture in pictures for dressed in _dress(picture, rng)), ""]
    parts = [
        embed_text(model, tokenizer, sentences[i : i + 512], device) for i in range(0, len(sentences), 512)
    ]
    categories = [picture.category for picture in pictures]
    views = torch.tensor([category in UPRIGHT for category in categories], device=device)
    return Captions(torch.cat(parts).bfloat16().clone(), views, categories)


def _dress(picture: Picture, rng: random.Random) -> list[str]:
    paint = picture.caption.split()[:1] if picture.tint else []
    versions = [vary(picture.caption, rng, frozenset(paint)) for _ in range(3)]
    names = read_names().get(picture.category, [picture.category.replace("_", " ")])
    near = read_neighbours().get(picture.category, [])
    chosen = [*rng.choices([*names, *near], k=3), names[0]]
    return [picture.caption, *versions, *(" ".join([*paint, name]) for name in chosen)]


def load_autoencoder(folder: Path) -> AutoencoderTiny:
    """What a stage wrote there, in float32.

    Raises:
        MissingPartError: none did.
    """
    return AutoencoderTiny.from_pretrained(require_part(folder), torch_dtype=torch.float32)


def load_encoders(folder: Path, device: torch.device) -> tuple[AutoencoderTiny, CLIPTextModel, CLIPTokenizer]:
    """What the earlier stages wrote, in float32.

    Raises:
        MissingPartError: they did not.
    """
    vae = load_autoencoder(folder / "vae").requires_grad_(False)
    text = CLIPTextModel.from_pretrained(require_part(folder / "text_encoder"), dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(require_part(folder / "tokenizer"))
    return vae.to(device, memory_format=torch.channels_last).eval(), text.to(device).eval(), tokenizer
