"""Enlargement by Lanczos' kernel, any part of the result at a time and the same as the whole."""

from functools import lru_cache
from math import floor

import torch
from torch import Tensor

from worker.engine.grid import Tile

_LOBES = 3


def enlarge(source: Tensor, height: int, width: int, part: Tile, wrap: tuple[bool, bool]) -> Tensor:
    """A part of `source` (C, h, w) enlarged to (height, width), float32.

    Two small matrix products, whose weights depend on absolute places alone: PyTorch and Pillow can
    only enlarge a whole picture, or lay a part's own grid, and neither goes round a wrapping axis.

    Args:
        part: of the enlarged picture; on a wrapping axis it may lie over the edge.
        wrap: whether the picture continues into itself, (vertically, horizontally); else it is mirrored.
    """
    device = source.device
    rows, down = _weigh(part.top, part.height, source.shape[-2], height, wrap[0], device)
    columns, right = _weigh(part.left, part.width, source.shape[-1], width, wrap[1], device)
    return down @ source[:, rows][:, :, columns].float() @ right.T


@lru_cache(maxsize=64)
def _weigh(
    start: int, extent: int, length: int, enlarged: int, wraps: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which pixels of an axis count, and how much (extent, pixels) for each new one.

    Made on the CPU and kept on the device: all tiles of a row have the same.
    """
    centers = (torch.arange(start, start + extent, dtype=torch.float64) + 0.5) * length / enlarged - 0.5
    first, last = floor(float(centers[0])) - _LOBES + 1, floor(float(centers[-1])) + _LOBES
    places = torch.arange(first, last + 1)
    distance = centers[:, None] - places[None, :]
    weights = torch.where(distance.abs() < _LOBES, distance.sinc() * (distance / _LOBES).sinc(), 0)
    shares = (weights / weights.sum(1, keepdim=True)).float()
    return _fold(places, length, wraps).to(device), shares.to(device)


def _fold(places: Tensor, length: int, wraps: bool) -> Tensor:
    """Places beyond the edge, brought back: round the ring, or mirrored at the edge."""
    if wraps:
        return places % length
    mirrored = places % (2 * length)
    return torch.minimum(mirrored, 2 * length - 1 - mirrored)
