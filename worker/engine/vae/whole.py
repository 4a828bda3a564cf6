"""Operations on one activation: a tile, or the whole canvas at once."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle
from worker.engine.errors import MomentsError, NonFiniteImageError
from worker.engine.ranks import Group
from worker.engine.vae.activation import Activation
from worker.engine.vae.norm import measure, normalize_by
from worker.engine.vae.operations import (
    Attend,
    Coder,
    Fork,
    Join,
    Local,
    Normalize,
    Operation,
    Shrink,
    Trim,
    place_after,
)


def run_whole(
    coder: Coder, operations: Sequence[Operation], canvas: Activation, group: Group
) -> tuple[Activation, list[Tensor]]:
    """A whole canvas after these operations of a coder, and the moments that its normalisations took.

    In float32 if it is not finite in the coder's own type; `wide` says so.

    Raises:
        NonFiniteImageError: NaN or infinity, in float32 too.
    """
    with coder.widened() if canvas.wide else nullcontext():
        after, moments = _run_and_measure(operations, canvas, group)
    if after.owned.isfinite().all():
        return after, moments
    if canvas.wide or coder.dtype is torch.float32:
        raise NonFiniteImageError("the canvas between latent and picture is not finite")
    del after
    return run_whole(coder, operations, canvas.widened(), group)


def cut(state: Tensor, canvas: Plane, rectangle: Rectangle, reach: int) -> Activation:
    """A rectangle of a canvas' state (1, C, H, W) with a halo; in the state's own memory layout."""
    outer, core = canvas.halo(rectangle, reach)
    rows = _index(canvas, outer.top, outer.height, 0)
    return Activation(state[..., rows, :][..., _index(canvas, outer.left, outer.width, 1)], core)


def _index(canvas: Plane, start: int, extent: int, axis: int) -> slice | Tensor:
    if start >= 0 and start + extent <= canvas.size[axis]:
        return slice(start, start + extent)
    return canvas.fold(torch.arange(start, start + extent), axis)


def _run_and_measure(
    operations: Sequence[Operation], activation: Activation, group: Group
) -> tuple[Activation, list[Tensor]]:
    moments: list[Tensor] = []
    for operation in operations:
        if isinstance(operation, Normalize):
            moments.append(measure(operation.norm, activation.owned))
            operation = Local(normalize_by(operation.norm, moments[-1]))
        activation = _apply(operation, activation, group)
    return activation, moments


def settle_with(operations: Sequence[Operation], moments: Sequence[Tensor]) -> list[Operation]:
    """The same with every normalisation replaced by one with these moments, which are in their order.

    Raises:
        MomentsError: they are not of these operations.
    """
    expected = [(3, each.norm.num_groups) for each in operations if isinstance(each, Normalize)]
    given = [tuple(each.shape) for each in moments]
    if given != expected:
        raise MomentsError(f"moments of shapes {given} were given, these operations have {expected}")
    waiting = iter(moments)
    return [
        Local(normalize_by(operation.norm, next(waiting))) if isinstance(operation, Normalize) else operation
        for operation in operations
    ]


def run(operations: Sequence[Operation], activation: Activation, group: Group) -> Activation:
    """Normalisations must have been replaced."""
    for operation in operations:
        activation = _apply(operation, activation, group)
    return activation


def _apply(operation: Operation, activation: Activation, group: Group) -> Activation:
    value = activation.value
    match operation:
        case Local() | Shrink():
            core = place_after([operation], activation.core)
            return replace(activation, value=operation.apply(value), core=core)
        case Trim(halo=halo):
            return activation.trimmed(halo)
        case Fork(shortcut=shortcut):
            return replace(activation, aside=shortcut(value))
        case Join(divisor=divisor):
            return activation.joined(divisor)
        case Attend():
            return replace(activation, value=_attend(operation, activation, group))
        case Normalize():
            raise AssertionError("a normalisation without its moments")


# Attention is shared out in strips of queries, always the same ones: bytes must not depend on ranks.
_STRIPS = 8


def _attend(attend: Attend, activation: Activation, group: Group) -> Tensor:
    """Each rank computes the queries of some strips of rows over the whole canvas, then all are gathered."""
    height = activation.value.shape[-2]
    rise = -(-height // _STRIPS)
    starts = range(0, height, rise)
    answers: list[Tensor] = []
    for first in range(0, len(starts), group.size):
        # The last strip lies within the canvas as a whole, over others if need be: all have one shape.
        start = min(starts[min(first + group.rank, len(starts) - 1)], height - rise)
        own = attend.apply(activation.value[..., start : start + rise, :], activation.owned)
        group.barrier()
        answers += group.all_gather(
            own.permute(0, 2, 3, 1)
        )  # channels last: one layout for any number of ranks
    last = height - starts[-1]
    whole = torch.cat([*answers[: len(starts) - 1], answers[len(starts) - 1][:, rise - last :]], dim=1)
    return whole.permute(0, 3, 1, 2)
