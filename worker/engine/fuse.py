"""One prediction for the whole canvas, out of the tiles' predictions."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle


@lru_cache(maxsize=32)
def blending_window(height: int, width: int, device: torch.device) -> Tensor:
    """Raised cosine in both axes, (height, width), float32, in (0, 1].

    Sampled at half pixels, so that no weight is zero and every pixel that a tile covers counts. Made
    on the CPU and kept on the device: a copy for each tile would hold up the host.
    """
    return torch.outer(_raised_cosine(height), _raised_cosine(width)).to(device)


def _raised_cosine(length: int) -> Tensor:
    phase = (torch.arange(length, dtype=torch.float64) + 0.5) * (2 * math.pi / length)
    return (0.5 - 0.5 * phase.cos()).float()


class Fusion:
    """The weighted mean m = Σ C_iᵀ(W ⊙ m_i) / Σ C_iᵀ W over tiles.

    Jiménez, "Mixture of Diffusers" (2023), eq. 3. Added in the order of `add` in float32, so the
    bytes depend on the tiles' order alone.
    """

    def __init__(self, canvas: Plane, like: Tensor) -> None:
        """
        Args:
            like: a state of the canvas, (C, H, W).
        """
        self._canvas = canvas
        self._sum = torch.zeros_like(like, dtype=torch.float32)
        self._weight = torch.zeros(canvas.size, device=like.device)

    def add(self, tile: Rectangle, prediction: Tensor, mask: Tensor | None = None) -> None:
        """Add the prediction (C, h, w) of one tile, which counts as much as its window and the mask (h, w) say."""
        window = blending_window(tile.height, tile.width, prediction.device)
        weight = window if mask is None else window * mask
        self._canvas.scatter_add(self._sum, tile, prediction.float() * weight)
        self._canvas.scatter_add(self._weight, tile, weight)

    def mean(self) -> Tensor:
        """The fused prediction (C, H, W), float32; 0 where no tile lies."""
        return self._sum / self._weight.clamp_min(torch.finfo(torch.float32).tiny)
