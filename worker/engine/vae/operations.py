"""A VAE as a list of operations, so that it can run on tiles and stay exact, in both directions.

A convolution needs a halo; a normalisation needs the statistics of the whole canvas; attention
needs the whole canvas itself. The list says which is which; executor.py acts on it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.canvas import Rectangle


@dataclass(frozen=True, slots=True)
class Local:
    """An operation of finite reach.

    Args:
        apply: (1, C, h, w) -> (1, C', h * scale, w * scale).
        reach: pixels that it looks beyond its own, at its output's resolution.
        scale: by how much it enlarges.
    """

    apply: Callable[[Tensor], Tensor]
    reach: int = 0
    scale: int = 1


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
class Normalize:
    """Group normalisation over the whole canvas."""

    norm: nn.GroupNorm


@dataclass(frozen=True, slots=True)
class Attend:
    """Self-attention over the whole canvas.

    Args:
        apply: ((1, C, h, w) with halo, (1, C, h', w')) -> (1, C, h, w); the first asks, the second answers.
        quadratic: whether each asks each, which is dear where both are many.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    quadratic: bool = True


@dataclass(frozen=True, slots=True)
class Fork:
    """Set the activation aside, through `shortcut`, for the next `Join`."""

    shortcut: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Join:
    """Add what was set aside, then divide by `divisor`."""

    divisor: float = 1.0


@dataclass(frozen=True, slots=True)
class Trim:
    """Keep a halo of `halo` pixels, no more."""

    halo: int


Operation = Local | Shrink | Normalize | Attend | Fork | Join | Trim


@dataclass(frozen=True, slots=True)
class Decoder:
    """Clean latent (C, H, W) to RGB in [-1, 1], (3, H * scale, W * scale).

    Args:
        channels: of each operation's output, for the memory plan.
        dtype: that the operations compute in.
        widened: within this context they compute in float32.
    """

    operations: Sequence[Operation]
    channels: Sequence[int]
    dtype: torch.dtype = torch.float32
    widened: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def scale(self) -> int:
        return scale_of(self.operations)


@dataclass(frozen=True, slots=True)
class Encoder:
    """RGB in [-1, 1], (3, H * scale, W * scale), to the clean latent (C, H, W): what a canvas holds.

    Args:
        tiled: the operations down to where the whole canvas is small.
        whole: the rest.
        dtype: that the operations compute in.
        widened: within this context they compute in float32.
    """

    tiled: Sequence[Operation]
    whole: Sequence[Operation]
    dtype: torch.dtype = torch.float32
    widened: Callable[[], AbstractContextManager[None]] = nullcontext


Coder = Decoder | Encoder


def with_fewer_keys(operations: Sequence[Operation], most: int) -> list[Operation]:
    """The same, but where quadratic attention has more than `most` pixels to answer it, means of squares of them do."""
    return [
        replace(each, apply=partial(_attend_to_means, each.apply, most))
        if isinstance(each, Attend) and each.quadratic
        else each
        for each in operations
    ]


def _attend_to_means(
    apply: Callable[[Tensor, Tensor], Tensor], most: int, source: Tensor, context: Tensor
) -> Tensor:
    side = ceil(sqrt(context[0, 0].numel() / most))
    return apply(source, F.avg_pool2d(context, side, ceil_mode=True) if side > 1 else context)


def scale_of(operations: Sequence[Operation]) -> int:
    """By how much they enlarge."""
    return prod(operation.scale for operation in operations if isinstance(operation, Local))


def shrink_of(operations: Sequence[Operation]) -> int:
    """By how much they make a picture smaller."""
    return prod(operation.factor for operation in operations if isinstance(operation, Shrink))


def place_after(operations: Sequence[Operation], place: Rectangle) -> Rectangle:
    """Where a rectangle of the first operation's input lies on the last one's output."""
    scale, factor = scale_of(operations), shrink_of(operations)
    top, left, height, width = (
        side * scale // factor for side in (place.top, place.left, place.height, place.width)
    )
    return Rectangle(top, left, height, width)


def halo_of(operations: Sequence[Operation]) -> int:
    """Pixels at the first operation's resolution that reach into one output pixel.

    Rounded up so that strides count from the same pixels in every tile.
    """
    halo = 0
    for operation in reversed(operations):
        if isinstance(operation, Local):
            halo = -(-(halo + operation.reach) // operation.scale)
        elif isinstance(operation, Shrink):
            halo = halo * operation.factor + 1
    unit = shrink_of(operations)
    return -(-halo // unit) * unit


def with_trims(operations: Sequence[Operation], *, at_joins: bool) -> Iterator[Operation]:
    """The same without the part of the halo that no later operation needs.

    It is dropped where there is most of it: after what changes the size.

    Args:
        at_joins: there, too, where tiles are held. The bytes of what comes next depend on it.
    """
    for index, operation in enumerate(operations):
        yield operation
        resizes = isinstance(operation, Shrink) or (isinstance(operation, Local) and operation.scale > 1)
        if resizes or (at_joins and isinstance(operation, Join)):
            yield Trim(halo_of(operations[index + 1 :]))
