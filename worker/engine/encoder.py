"""A VAE encoder as a list of operations, so that it can be walked in tiles as a decoder is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from worker.engine.decoder import Local, Operation


@dataclass(frozen=True, slots=True)
class Shrink:
    """A convolution with a stride, or another operation that makes less of a picture.

    Args:
        apply: (1, C, h, w) -> (1, C', h / factor, w / factor); output i sees inputs from
            i * factor - 1 to (i + 1) * factor.
    """

    apply: Callable[[Tensor], Tensor]
    factor: int = 2


@dataclass(frozen=True, slots=True)
class Encoder:
    """RGB in [-1, 1], (3, H * scale, W * scale), to the clean latent (C, H, W): what a canvas holds.

    Args:
        tiled: the operations down to where the whole canvas is small.
        whole: the rest.
        dtype: that the operations compute in.
        widened: within this context they compute in float32.
    """

    tiled: Sequence[Operation | Shrink]
    whole: Sequence[Operation | Shrink]
    dtype: torch.dtype = torch.float32
    widened: Callable[[], AbstractContextManager[None]] = nullcontext


def shrink_of(operations: Sequence[Operation | Shrink]) -> int:
    return prod(operation.factor for operation in operations if isinstance(operation, Shrink))


def aligned_halo_of(operations: Sequence[Operation | Shrink]) -> int:
    """Pixels at the first operation's resolution that reach into one output pixel.

    Rounded up so that strides count from the same pixels in every tile.
    """
    halo = 0
    for operation in reversed(operations):
        if isinstance(operation, Shrink):
            halo = halo * operation.factor + 1
        elif isinstance(operation, Local):
            halo += operation.reach
    unit = shrink_of(operations)
    return -(-halo // unit) * unit
