"""Statistics of one group normalisation over a whole canvas, gathered tile by tile."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, linalg, nn

_NARROW = (torch.float16, torch.bfloat16)


def measure(norm: nn.GroupNorm, core: Tensor) -> Tensor:
    """n, Σx, Σx² of each group over the pixels that one tile owns: (3, groups), float64, on the device.

    Half types are widened inside the reduction, so nothing of the tile's size is written; float32 is
    summed in float64, since Σx² alone cancels where the mean is large. Summed by channel first: that
    is one fast reduction in either memory layout, which a sum over groups is not.

    Args:
        core: (1, C, h, w), without its halo, so that no pixel counts twice.
    """
    wide = torch.float32 if core.dtype in _NARROW else torch.float64
    total = core[0].sum((1, 2), dtype=wide)
    length = cast(Tensor, linalg.vector_norm(core[0], dim=(1, 2), dtype=wide))  # pyright: ignore[reportUnknownMemberType]
    channels = torch.stack([total.double(), length.double().square()])
    sums = torch.unflatten(channels, 1, (norm.num_groups, -1)).sum(-1)
    count = torch.full_like(sums[:1], core[0].numel() / norm.num_groups)
    return torch.cat([count, sums])


class Moments:
    """Mean and variance of the whole canvas (Chan et al. 1979), out of all tiles' sums in tile order."""

    def __init__(self, norm: nn.GroupNorm, sums: Sequence[Tensor]) -> None:
        """
        Args:
            sums: what `measure` says of each tile.
        """
        count, total, squares = torch.stack(list(sums)).sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        per_group = norm.num_channels // norm.num_groups
        self._norm = norm
        self._mean, self._variance = (
            each.repeat_interleave(per_group, output_size=norm.num_channels).float()
            for each in (mean, variance)
        )

    def apply(self, activation: Tensor) -> Tensor:
        """Normalise (1, C, h, w); Wu & He 2018, eq. 1.

        With statistics that are given, that is what batch normalisation does when it is not learning,
        and PyTorch does it in float32 within one pass over the activation, in whatever type it is.
        """
        weight, bias = self._norm.weight.float(), self._norm.bias.float()
        return F.batch_norm(activation, self._mean, self._variance, weight, bias, False, 0.0, self._norm.eps)
