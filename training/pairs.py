"""Pairs: a window of a picture's latent, and what the same picture, reduced and enlarged again, has there."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from training.augment import load_images
from training.dataset import Picture
from training.latents import encode_pixels

SCALES = (2, 3, 4)  # by which a stage enlarges
_SCALE_WEIGHTS = (0.35, 0.15, 0.5)
# How large the picture is taken, and how often: at 1 its grain is the camera's own.
_ZOOMS, _ZOOM_WEIGHTS = (1.0, 0.7, 0.5), (0.6, 0.25, 0.15)
_LARGE_PX = 1600  # the long side of a photograph that was not reduced
_TURNS_LARGE, _TURNS_SMALL = 12, 6  # readings of one picture, each at another zoom and scale
_WINDOWS = 2  # of each reading, for every window that would fit beside the others


@dataclass(frozen=True, slots=True)
class Pairs:
    """Windows of one size.

    Attributes:
        latents: (N, C, side, side), unit deviation, bfloat16.
        leads: the same place of the latent of the picture reduced and enlarged again.
        scales: (N,), by how much.
        owners: (N,), the picture of each.
    """

    latents: Tensor
    leads: Tensor
    scales: Tensor
    owners: Tensor

    def draw(self, count: int) -> "Pairs":
        """Random ones, float32."""
        chosen = torch.randint(len(self.latents), (count,), device=self.latents.device)
        latents, leads = self.latents[chosen].float(), self.leads[chosen].float()
        return Pairs(latents, leads, self.scales[chosen], self.owners[chosen])

    def first(self, count: int) -> "Pairs":
        """So many of them."""
        return Pairs(self.latents[:count], self.leads[:count], self.scales[:count], self.owners[:count])

    def disturb(self, most: float) -> Tensor:
        """The leads under noise of up to `most` deviations: none that is made in use is a photograph's."""
        amount = most * torch.rand(len(self.leads), 1, 1, 1, device=self.leads.device)
        return self.leads + amount * torch.randn_like(self.leads)


def enlarge(picture: Tensor, scale: int) -> Tensor:
    """(B, 3, H, W) to (B, 3, scale H, scale W), bicubic.

    A latent says where within its 8 pixels an edge lies. Enlarged itself, as in StableDiffusionLatentUpscalePipeline,
    it says that of places which are no longer there; so pixels are enlarged, and encoded then.
    """
    enlarged = functional.interpolate(picture, scale_factor=scale, mode="bicubic", align_corners=False)
    return enlarged.clamp(-1, 1)


def encode_pairs(
    vae: AutoencoderTiny, pictures: list[Picture], side: int, most: int, device: torch.device, seed: int
) -> Pairs:
    """Windows of all pictures that are large enough, at most so many.

    Args:
        side: of a window, latent pixels.
    """
    rng = random.Random(seed)
    images = load_images(pictures, torch.device("cpu"))
    readings = [
        (owner, zoom, scale)
        for owner, image in enumerate(images)
        for zoom, scale in _choose_readings(image, side, rng)
    ]
    rng.shuffle(readings)
    windows = (
        (*window, scale, owner)
        for owner, zoom, scale in readings
        for window in _read(vae, images[owner].to(device), zoom, scale, side, rng)
    )
    latents, leads, scales, owners = zip(*islice(windows, most), strict=True)
    numbers = (torch.tensor(each, device=device) for each in (scales, owners))
    return Pairs(torch.stack(latents), torch.stack(leads), *numbers)


def _choose_readings(image: Tensor, side: int, rng: random.Random) -> list[tuple[float, int]]:
    """(zoom, scale) of each."""
    turns = _TURNS_LARGE if max(image.shape[1:]) >= _LARGE_PX else _TURNS_SMALL
    zooms = rng.choices(_ZOOMS, _ZOOM_WEIGHTS, k=turns)
    scales = rng.choices(SCALES, _SCALE_WEIGHTS, k=turns)
    smallest = min(image.shape[1:])
    return [
        (zoom, scale)
        for zoom, scale in zip(zooms, scales, strict=True)
        if smallest * zoom // (8 * scale) * scale >= side
    ]


@torch.no_grad()
def _read(
    vae: AutoencoderTiny, image: Tensor, zoom: float, scale: int, side: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of one picture's latent, and of that of what is left when it was small."""
    picture = _reduce(image[None].float().div_(127.5).sub_(1), zoom)
    picture = picture.flip(3) if rng.random() < 0.5 else picture
    height, width = (extent // (8 * scale) * 8 * scale for extent in picture.shape[2:])
    picture = picture[..., :height, :width]
    latent = encode_pixels(vae, picture)[0].bfloat16()
    lead = encode_pixels(vae, enlarge(_reduce(picture, 1 / scale), scale))[0].bfloat16()
    rows, columns = latent.shape[1] - side + 1, latent.shape[2] - side + 1
    for _ in range(_WINDOWS * round(latent.shape[1] * latent.shape[2] / side**2)):
        top, left = rng.randrange(rows), rng.randrange(columns)
        window = slice(top, top + side), slice(left, left + side)
        yield latent[:, *window].clone(), lead[:, *window].clone()


def _reduce(picture: Tensor, share: float) -> Tensor:
    if share == 1.0:
        return picture
    size = [round(extent * share) for extent in picture.shape[2:]]
    return functional.interpolate(picture, size=size, mode="bicubic", antialias=True).clamp_(-1, 1)
