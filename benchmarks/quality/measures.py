"""Measures of single pictures and of crops, in closed form; KID is in `training.measures`."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CELL_PX = 256
BLUR_PX = 8
# Lines that are compared with one lie so far to either side. Near, since half a scene is sky and half is rocks; and at
# multiples of 8 px, since decoders that double their input three times leave periods of that.
BESIDE_PX, CLEAR_PX = (24, 32, 40, 48, 56, 64), 16
FAR = 2  # cells: what lies between two crops that are far apart is at least as wide as one of them


@dataclass(frozen=True, slots=True)
class Texture:
    """How much a texture changes from cell to cell, and how strong it is.

    Attributes:
        tone: standard deviation of the cells' means, averaged over channels, of 255.
        contrast: that of the cells' contrast (deviation of grey), over its mean.
        scale: that of gradient over contrast, which falls as the pattern grows, over its mean.
        mean_contrast: so is `mean_gradient`, the mean difference of neighbouring pixels; of 255.
    """

    tone: float
    contrast: float
    scale: float
    mean_contrast: float
    mean_gradient: float


def measure_texture(image: Tensor) -> Texture:
    """Of a (3, H, W) uint8 picture of at least two cells.

    Deviations are those of a sample, so that a picture of four cells and one of 256 can be compared.
    """
    cells = cut_cells(image, CELL_PX).float()
    grey = cells.mean(1)
    tone, contrast = cells.mean(dim=(2, 3)), grey.std(dim=(1, 2), correction=0)
    down, right = (grey.diff(dim=axis).abs().mean(dim=(1, 2)) for axis in (1, 2))
    gradient = (down + right) / 2
    scale = gradient / (contrast + 1e-6)
    return Texture(
        tone.std(0).mean().item(),
        (contrast.std() / (contrast.mean() + 1e-6)).item(),
        (scale.std() / (scale.mean() + 1e-6)).item(),
        contrast.mean().item(),
        gradient.mean().item(),
    )


def cut_cells(image: Tensor, side_px: int) -> Tensor:
    """All whole cells, row by row, (N, C, side_px, side_px)."""
    rows = image.unfold(1, side_px, side_px).unfold(2, side_px, side_px)
    return rows.permute(1, 2, 0, 3, 4).reshape(-1, image.shape[0], side_px, side_px)


def measure_bands(crops: Tensor, cuts: tuple[float, ...]) -> Tensor:
    """Energy above each cut, summed over the grey of square crops under a Hann window, (len(cuts),).

    Without the window the jump from one edge to the other would count as detail.

    Args:
        crops: (N, 3, S, S).
        cuts: cycles a pixel; the sampling rate is 1, the highest frequency of an axis 1/2.
    """
    side = crops.shape[-1]
    hann = torch.hann_window(side, periodic=False)
    window = hann[:, None] * hann
    grey = crops.float().mean(1)
    mean = (grey * window).sum(dim=(1, 2), keepdim=True) / window.sum()
    energy = (np.abs(np.fft.fft2(((grey - mean) * window).numpy())) ** 2).sum(axis=0)
    frequency = np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency)
    return torch.tensor([float(energy[radius > cut].sum()) for cut in cuts])


def find_nearest(features: Tensor, contrast: Tensor) -> float:
    """Distance of the two most alike crops that lie far apart, among the half with the most contrast.

    Two pieces of clear sky are alike in every picture; two peaks should not be.

    Args:
        features: of a square grid of crops, row by row, (N * N, D).
        contrast: of each, (N * N,).
    """
    side = round(len(features) ** 0.5)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    far = torch.maximum(abs(rows - rows[:, None]), abs(columns - columns[:, None])) >= FAR
    rich = (contrast >= contrast.median()).cpu()
    unit = functional.normalize(features.double(), dim=1)
    distance = (2 - 2 * unit @ unit.T).clamp(min=0).sqrt().cpu()
    return distance[far & rich & rich[:, None]].min().item()


@dataclass(frozen=True, slots=True)
class Differences:
    """Of a picture: the mean difference across each row and the one above it, and the same for columns.

    Above the first row lies the last.
    """

    rows: Tensor
    columns: Tensor


def find_differences(image: Tensor) -> Differences:
    """Of (3, H, W)."""
    image = image.float()
    return Differences(
        (image - image.roll(1, 1)).abs().mean(dim=(0, 2)),
        (image - image.roll(1, 2)).abs().mean(dim=(0, 1)),
    )


def measure_seam(found: Differences, rows: list[int], columns: list[int]) -> float | None:
    """Mean difference across lines over that across lines 24 to 64 px to either side of each: 1.00 is no seam.

    Lines that lie nearer than 16 px to one of the measured ones do not count beside another.

    Args:
        rows: each line lies between this row of pixels and the one above; line 0 between the first and the last.
    """
    across, beside = 0.0, 0.0
    for differences, lines in ((found.rows, rows), (found.columns, columns)):
        for line in lines:
            if near := _find_beside(line, lines, len(differences)):
                across += differences[line % len(differences)].item()
                beside += differences[near].mean().item()
    return across / beside if beside else None


def _find_beside(line: int, lines: list[int], length: int) -> list[int]:
    moved = [line + sign * step for step in BESIDE_PX for sign in (-1, 1)]
    if 0 not in lines:  # no join, so what lies beyond an edge is not beside it
        moved = [each for each in moved if 0 < each < length]
    return [each % length for each in moved if all(_gap(each, other, length) >= CLEAR_PX for other in lines)]


def _gap(a: int, b: int, length: int) -> int:
    return min((a - b) % length, (b - a) % length)


def blur(image: Tensor) -> Tensor:
    """By a Gaussian of 8 px, which leaves of a seam only its step of tone; the picture is continued into itself."""
    reach = 3 * BLUR_PX
    kernel = torch.exp(-torch.arange(-reach, reach + 1, device=image.device).square() / (2 * BLUR_PX**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = functional.pad(image.float()[None], (reach,) * 4, mode="circular")
    across = functional.conv2d(padded, kernel[:, :, None, :], groups=3)
    return functional.conv2d(across, kernel[:, :, :, None], groups=3)[0]


def find_error(left_out: list[float]) -> float:
    """Standard error of a figure, from its values with one group left out each: the jackknife (Efron 1982, chapter 3)."""
    values = torch.tensor(left_out, dtype=torch.float64)
    count = len(values)
    return ((count - 1) / count * (values - values.mean()).square().sum()).sqrt().item()
