"""Statistics of one group normalisation over a whole canvas, gathered tile by tile."""

from collections.abc import Callable, Sequence
from functools import partial
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


def blank_sums(norm: nn.GroupNorm) -> Tensor:
    """What `measure` says of no pixel."""
    return torch.zeros(3, norm.num_groups, dtype=torch.float64, device=norm.weight.device)


def pool(sums: Sequence[Tensor]) -> Tensor:
    """n, Σx, Σx² of the whole canvas, (3, groups), out of all tiles' in tile order."""
    return torch.stack(list(sums)).sum(0)


def normalize_by(norm: nn.GroupNorm, moments: Tensor) -> Callable[[Tensor], Tensor]:
    """The normalisation of any part (1, C, h, w) of a canvas with these moments; Wu & He 2018, eq. 1.

    With statistics that are given, that is what batch normalisation does when it is not learning,
    and PyTorch does it in float32 within one pass over the activation, in whatever type it is.

    Args:
        moments: what `pool` says, on any device.
    """
    mean, variance = _find_statistics(norm, moments.to(norm.weight.device))

    def apply(activation: Tensor) -> Tensor:
        weight, bias = norm.weight.float(), norm.bias.float()
        return F.batch_norm(activation, mean, variance, weight, bias, False, 0.0, norm.eps)

    return apply


def _find_statistics(norm: nn.GroupNorm, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, (C,), float32 (Chan et al. 1979)."""
    count, total, squares = moments
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    repeats = norm.num_channels // norm.num_groups
    spread = partial(torch.repeat_interleave, repeats=repeats, output_size=norm.num_channels)
    return spread(mean).float(), spread(variance).float()
