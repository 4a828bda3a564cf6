"""The same figures of real pictures: measured once, and kept in a file that may travel without them."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.quality.measures import cut_cells, find_nearest, measure_bands, measure_texture
from benchmarks.quality.pictures import read_image
from benchmarks.quality.prompts import SCENES, TEXTURES, find_known
from training.dataset import Picture, read_pictures
from training.features import Features

CROP_PX = 512
CUTS = (1 / 8, 1 / 4)  # cycles a pixel
# Energy above this is what is divided by. Of all energy, the share above 1/8 is 0.004 of a sky and 0.4 of a forest:
# it differs by 40 % (one standard deviation) between any eight photographs and the next, this by 8 %.
FLOOR = 1 / 16
# Of the large pictures, those that show no scene: the prompts ask for none of them.
_NO_SCENES = ("surface", "satellite", "vegetation", "aerial", "panorama")
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Reality:
    """Real pictures, measured.

    Attributes:
        landscapes: features of whole pictures, reduced to 512 px, (N, 1280).
        crops: features of native 512 px crops of held-out large photographs, (M, 1280).
        bands: what `share_bands` says, by side of the pictures that it is compared with.
        nearest: mean distance of the nearest far-apart crops, by the same.
        textures: mean figures of tileable pictures, by category.
    """

    landscapes: Tensor
    crops: Tensor
    bands: dict[int, list[float]]
    nearest: dict[int, float]
    textures: dict[str, dict[str, float]]


def observe_reality(data: Path, large: Path, sizes: list[int], features: Features) -> Reality:
    """Measure the data set, and the set of large photographs.

    Raises:
        ValueError: a prompt stands in a caption.
    """
    small = read_pictures(data)
    photographs = _read_photographs(large)
    if known := find_known([*SCENES, *TEXTURES], [each.caption for each in [*small, *read_pictures(large)]]):
        raise ValueError(f"prompts must stand in no caption, and these do: {', '.join(known)}")
    landscapes = [read_image(each.path) for each in small if each.category == "landscape"]
    unseen = [cut_cells(read_image(path), CROP_PX) for path, held_out in photographs if held_out]
    images = [read_image(path) for path, _ in photographs]
    return Reality(
        extract(features, torch.stack([reduce_square(each, CROP_PX) for each in landscapes])),
        torch.cat([extract(features, crops) for crops in unseen]),
        {side: share_bands([reduce_to(each, side) for each in images]) for side in sizes},
        {side: _average([measure_nearest(features, each, side) for each in images]) for side in sizes},
        {category: _describe_textures(small, category) for category in sorted(set(TEXTURES.values()))},
    )


def keep_reality(reality: Reality, path: Path) -> None:
    """Write it to a file."""
    torch.save({name: getattr(reality, name) for name in Reality.__dataclass_fields__}, path)


def load_reality(path: Path) -> Reality:
    """Read what `keep_reality` wrote."""
    return Reality(**torch.load(path, weights_only=True))


def _read_photographs(folder: Path) -> list[tuple[Path, bool]]:
    """(file, whether it is held out) of all large pictures that are photographs of scenes."""
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text("utf-8").splitlines() if line]
    return [
        (folder / row["file"], row["split"] == "heldout")
        for row in rows
        if row["kind"] not in _NO_SCENES and not row["rendered"]
    ]


@torch.no_grad()
def extract(features: Features, images: Tensor) -> Tensor:
    """Pooled features of (N, 3, H, W) uint8, on the CPU, (N, 1280)."""
    device = next(features.parameters()).device
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    return torch.cat([features(each.to(device).float() / 127.5 - 1).cpu() for each in batches])


def reduce_square(image: Tensor, side_px: int) -> Tensor:
    """The middle square, reduced (or, where it is smaller, enlarged) to `side_px`, uint8."""
    side = min(image.shape[1:])
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return _resize(image[:, top : top + side, left : left + side], (side_px, side_px))


def reduce_to(image: Tensor, side_px: int) -> Tensor:
    """The whole, its short side reduced to `side_px`; a smaller picture as it is."""
    short = min(image.shape[1:])
    if short <= side_px:
        return image
    height, width = (max(side_px, round(length * side_px / short)) for length in image.shape[1:])
    return _resize(image, (height, width))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[1:] == size:
        return image
    resized = functional.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def share_bands(images: Iterable[Tensor]) -> list[float]:
    """Energy above each of `CUTS` over that above `FLOOR`, of all native 512 px crops together."""
    energies = [measure_bands(cut_cells(image, CROP_PX), (*CUTS, FLOOR)) for image in images]
    total = torch.stack(energies).sum(0)
    return [float(each / total[-1]) for each in total[:-1]]


def measure_nearest(features: Features, image: Tensor, side_px: int) -> float:
    """`find_nearest` of a picture's middle square, cut into the cells of 512 px that a picture of `side_px` has.

    All are seen at the size that the smallest photographs have pixels for.
    """
    count = max(side_px // CROP_PX, 3)
    cell_px = min(256, 1280 // count // 32 * 32)
    cells = cut_cells(reduce_square(image, count * cell_px), cell_px)
    return find_nearest(extract(features, cells), cells.float().mean(1).std(dim=(1, 2)))


def _describe_textures(pictures: list[Picture], category: str) -> dict[str, float]:
    """One period says all: repeated, it would only be the same cells again."""
    images = [read_image(each.path) for each in pictures if each.tileable and each.category == category]
    figures = [asdict(measure_texture(each)) for each in images if min(each.shape[1:]) >= CROP_PX]
    return {name: _average([each[name] for each in figures]) for name in figures[0]}


def _average(values: list[float]) -> float:
    return sum(values) / len(values)
