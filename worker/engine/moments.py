"""Statistics of one group normalisation over a whole canvas, gathered tile by tile."""

import torch
from torch import Tensor, nn


class Moments:
    """Pools n, Σx, Σx² of each group in float64 over the pixels that tiles own.

    The halo is left out, so no pixel counts twice (Chan et al. 1979, parallel variance).
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self._norm = norm
        self._count = 0
        self._sums: Tensor | None = None

    def add(self, core: Tensor) -> None:
        """Count in the owned pixels (1, C, h, w) of one tile."""
        groups = core.float().reshape(self._norm.num_groups, -1)
        size = groups.shape[1]
        mean = groups.mean(dim=1)
        # Centred in float32 first: Σx² alone would cancel where the mean is large.
        square = (groups - mean[:, None]).square().mean(dim=1).double() + mean.double().square()
        sums = torch.stack([mean.double(), square]) * size
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += size

    def apply(self, activation: Tensor) -> Tensor:
        """Normalise (1, C, h, w) with the pooled mean and variance; Wu & He 2018, eq. 1."""
        if self._sums is None:
            raise RuntimeError("no tile was added")
        mean, square = self._sums / self._count
        spread = (square - mean.square()).clamp(min=0).add(self._norm.eps).rsqrt()
        per_group = self._norm.num_channels // self._norm.num_groups
        scale = spread.repeat_interleave(per_group).float() * self._norm.weight.float()
        offset = self._norm.bias.float() - mean.repeat_interleave(per_group).float() * scale
        return (activation.float() * scale[:, None, None] + offset[:, None, None]).to(activation.dtype)
