"""A small picture, or a latent, read between its pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import floor

import torch
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a picture is read between its pixels.

    Args:
        reach: pixels to each side that count.
        weigh: distances in pixels -> how much those pixels count.
    """

    reach: int
    weigh: Callable[[Tensor], Tensor]


_LOBES = 3
LANCZOS = Kernel(_LOBES, lambda distance: distance.sinc() * (distance / _LOBES).sinc())
BILINEAR = Kernel(1, lambda distance: 1 - distance.abs())


def _weigh_cubic(distance: Tensor) -> Tensor:
    """Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, eq. 15; so does libvips."""
    far = distance.abs()
    near = (1.5 * far - 2.5) * far.square() + 1
    return torch.where(far < 1, near, ((2.5 - 0.5 * far) * far - 4) * far + 2)


BICUBIC = Kernel(2, _weigh_cubic)


def enlarge(source: Tensor, canvas: Plane, part: Rectangle, kernel: Kernel = LANCZOS) -> Tensor:
    """A part of a picture (C, h, w) enlarged to the size of `canvas`, float32.

    Two small matrix products, whose weights depend on absolute places alone: PyTorch and Pillow can
    only enlarge a whole picture, or lay a part's own grid, and neither goes round a wrapping axis.

    Args:
        part: of the enlarged picture; on a wrapping axis it may lie over the edge.
    """
    small = canvas.resized(*source.shape[-2:])
    rows, down = _weigh(part.top, part.height, canvas.height, small, 0, source.device, kernel)
    columns, right = _weigh(part.left, part.width, canvas.width, small, 1, source.device, kernel)
    return down @ source[:, rows][:, :, columns].float() @ right.T


@lru_cache(maxsize=64)
def _weigh(
    start: int, extent: int, enlarged: int, small: Plane, axis: int, device: torch.device, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """Which pixels of an axis count, and how much (extent, pixels) for each new one.

    Made on the CPU and kept on the device: all tiles of a row have the same.
    """
    steps = torch.arange(start, start + extent, dtype=torch.float64)
    centers = (steps + 0.5) * small.size[axis] / enlarged - 0.5
    reach = kernel.reach
    first, last = floor(float(centers[0])) - reach + 1, floor(float(centers[-1])) + reach
    places = torch.arange(first, last + 1)
    distance = centers[:, None] - places[None, :]
    weights = torch.where(distance.abs() < reach, kernel.weigh(distance), 0)
    shares = (weights / weights.sum(1, keepdim=True)).float()
    return small.fold(places, axis).to(device), shares.to(device)
