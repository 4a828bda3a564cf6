"""Random crops of the pictures, cut and turned on the training device."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training.dataset import Picture
from training.tint import apply_tint

# Seen from above, with no up and no grain: a quarter turn gives another true picture.
ISOTROPIC = frozenset(
    [
        "concrete",
        "dirt",
        "farmland",
        "fabric",
        "forest_floor",
        "grass",
        "gravel",
        "ice",
        "lava",
        "marble",
        "paving",
        "plaster",
        "rock",
        "sand",
        "snow",
        "tiles",
        "underwater",
        "vegetation",
        "water",
    ]
)
MIN_WRAP_PX = 480
CROP_PX = 512  # of crops that are cut once; a step sees a window of each
# These have a sky: upside down they would be false.
UPRIGHT = frozenset(["landscape", "sky", "underwater"])
# Views, and what a game's engine drew of them: packages, and skies of another.
_FAR = frozenset(["landscape", "sky"])
_RENDERED = ("lugaru-data/", "redeclipse-data/", "supertuxkart-data/", "skies/desert/", "skies/mountainous/")


@dataclass(frozen=True, slots=True)
class CropRange:
    """Side of a crop in the source, as a share of the wanted side: `native` of them at exactly 1."""

    low: float
    high: float
    native: float


def load_images(pictures: list[Picture], device: torch.device) -> list[Tensor]:
    """Every picture as uint8 (3, H, W) on the device."""
    with ThreadPoolExecutor() as pool:
        return [image.to(device) for image in pool.map(_load, pictures)]


def _load(picture: Picture) -> Tensor:
    with Image.open(picture.path) as image:
        return torch.as_tensor(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def balance(pictures: list[Picture], views: float | None = None) -> list[float]:
    """Sampling weights: a category counts by its size to the power of 0.7, so landscapes don't drown 8 roofs.

    Under its square root landscapes, the hardest and every fifth picture, were a tenth of the crops. A painted
    picture counts half: things without a named colour shall have their own.

    Args:
        views: share of all crops that shall be photographs of views; what else has an up and a down is left out.
    """
    counts = Counter(picture.category for picture in pictures)
    weights = [counts[picture.category] ** -0.3 * (0.5 if picture.tint else 1.0) for picture in pictures]
    if views is None:
        return weights
    upright = [picture.category in UPRIGHT for picture in pictures]
    photographed = [is_view(picture) for picture in pictures]
    seen = sum(weight for weight, real in zip(weights, photographed, strict=True) if real)
    rest = sum(weight for weight, skipped in zip(weights, upright, strict=True) if not skipped)
    shares = {True: views / seen, False: (1 - views) / max(rest, 1e-9)}
    return [
        weight * shares[real] if real or not skipped else 0.0
        for weight, skipped, real in zip(weights, upright, photographed, strict=True)
    ]


def is_view(picture: Picture) -> bool:
    """Whether it is a photograph of something far away; what a game's engine drew has strokes where those have forms."""
    return picture.category in _FAR and not any(part in picture.source for part in _RENDERED)


def sample_crop(image: Tensor, picture: Picture, side_px: int, zoom: CropRange, rng: random.Random) -> Tensor:
    """One random crop.

    Args:
        image: uint8 (3, H, W).

    Returns:
        float (3, side_px, side_px) in [-1, 1]. Tileable pictures wrap around at their edges, but for
        small ones, that would repeat in one crop: those are enlarged.
    """
    share = 1.0 if rng.random() < zoom.native else rng.uniform(zoom.low, zoom.high)
    region = round(side_px * share)
    wraps = picture.tileable and min(image.shape[1:]) >= MIN_WRAP_PX
    if not wraps:
        region = min(region, *image.shape[1:])
    crop = _cut(image, wraps, region, rng).float().div_(127.5).sub_(1)
    if region != side_px:
        crop = _resize(crop, side_px)
    if picture.tint is not None:
        crop = apply_tint(crop, picture.tint, rng.uniform(0.6, 0.95))
    return _jitter(_turn(crop, picture.category, rng), rng)


def cut_crops(
    pictures: list[Picture], count: int, zoom: CropRange, rng: random.Random, device: torch.device
) -> Tensor:
    """Random crops, categories balanced, uint8 (count, 3, 512, 512): cut one by one at each step they were the brake."""
    images = load_images(pictures, device)
    chosen = rng.choices(range(len(images)), weights=balance(pictures), k=count)
    crops = torch.empty(len(chosen), 3, CROP_PX, CROP_PX, dtype=torch.uint8, device=device)
    for row, i in enumerate(chosen):
        crops[row] = sample_crop(images[i], pictures[i], CROP_PX, zoom, rng).add_(1).mul_(127.5).round_()
    return crops


def draw_windows(crops: Tensor, count: int, side_px: int, rng: random.Random) -> Tensor:
    """The same window of random crops, float (count, 3, side_px, side_px) in [-1, 1], channels last."""
    chosen = torch.randint(len(crops), (count,), device=crops.device)
    top, left = rng.randrange(CROP_PX - side_px + 1), rng.randrange(CROP_PX - side_px + 1)
    window = crops[:, :, top : top + side_px, left : left + side_px].index_select(0, chosen)
    return window.contiguous(memory_format=torch.channels_last).float().div_(127.5).sub_(1)


def _cut(image: Tensor, wraps: bool, region: int, rng: random.Random) -> Tensor:
    height, width = image.shape[1:]
    top = rng.randrange(height if wraps else height - region + 1)
    left = rng.randrange(width if wraps else width - region + 1)
    if top + region <= height and left + region <= width:
        return image[:, top : top + region, left : left + region]
    rows = torch.arange(top, top + region, device=image.device) % height
    columns = torch.arange(left, left + region, device=image.device) % width
    return image.index_select(1, rows).index_select(2, columns)


def _resize(crop: Tensor, side_px: int) -> Tensor:
    resized = functional.interpolate(crop[None], size=(side_px, side_px), mode="bicubic", antialias=True)
    return resized[0].clamp_(-1, 1)


def _turn(crop: Tensor, category: str, rng: random.Random) -> Tensor:
    if rng.random() < 0.5:
        crop = crop.flip(2)
    if category not in UPRIGHT and rng.random() < 0.5:
        crop = crop.flip(1)
    if category in ISOTROPIC - UPRIGHT and rng.random() < 0.5:
        crop = crop.transpose(1, 2)
    return crop


def _jitter(crop: Tensor, rng: random.Random) -> Tensor:
    """A little brightness, so that colour words stay true."""
    return (crop + rng.uniform(-0.04, 0.04)).clamp_(-1, 1)
