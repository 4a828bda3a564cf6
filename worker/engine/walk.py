"""Operations of a decoder, run on one activation: of the whole canvas, or of a tile with its halo."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.activations import Activation
from worker.engine.decoder import Attend, Fork, Join, Local, Normalize, Operation, Trim
from worker.engine.grid import Tile
from worker.engine.moments import Moments, measure
from worker.engine.sync import Group

# Attention is shared out in strips of queries, always the same ones: bytes must not depend on ranks.
_STRIPS = 8


def cut(canvas: Tensor, tile: Tile, halo: int, wrap: tuple[bool, bool]) -> Activation:
    """A tile of (1, C, H, W) with a halo that goes round a wrapping axis and ends at a border."""
    above, rows = _reach(tile.top, tile.height, canvas.shape[-2], halo, wrap[0])
    before, columns = _reach(tile.left, tile.width, canvas.shape[-1], halo, wrap[1])
    value = canvas[..., rows, :][..., columns]
    return Activation(value, Tile(above, before, tile.height, tile.width))


def _reach(start: int, extent: int, length: int, halo: int, wraps: bool) -> tuple[int, slice | list[int]]:
    """How many pixels lie before the tile on one axis, and which pixels those and the tile are."""
    first, last = start - halo, start + extent + halo
    if wraps and not 0 <= first < last <= length:
        return halo, [place % length for place in range(first, last)]
    return start - max(first, 0), slice(max(first, 0), min(last, length))


def run(operations: Sequence[Operation], activation: Activation, group: Group) -> Activation:
    for operation in operations:
        activation = _apply(operation, activation, group)
    return activation


def _apply(operation: Operation, activation: Activation, group: Group) -> Activation:
    value = activation.value
    match operation:
        case Local(apply=apply, scale=scale):
            return activation.enlarged(apply(value), scale)
        case Trim(halo=halo):
            return activation.trimmed(halo)
        case Fork(shortcut=shortcut):
            return activation.forked(shortcut(value))
        case Join(divisor=divisor):
            return activation.joined(divisor)
        case Attend():
            return activation.enlarged(_attend(operation, activation, group), 1)
        case Normalize(norm=norm):
            return activation.enlarged(Moments(norm, [measure(norm, activation.owned)]).apply(value), 1)


def _attend(attend: Attend, activation: Activation, group: Group) -> Tensor:
    """Every rank asks for some strips of rows; all ask the whole canvas, and hear all answers."""
    height = activation.value.shape[-2]
    rise = -(-height // _STRIPS)
    starts = range(0, height, rise)
    answers: list[Tensor] = []
    for first in range(0, len(starts), group.size):
        # The last strip lies within the canvas as a whole, over others if need be: all have one shape.
        start = min(starts[min(first + group.rank, len(starts) - 1)], height - rise)
        own = attend.apply(activation.value[..., start : start + rise, :], activation.owned)
        group.meet()
        answers += group.gather(own.permute(0, 2, 3, 1))  # channels last: one layout for any number of ranks
    last = height - starts[-1]
    whole = torch.cat([*answers[: len(starts) - 1], answers[len(starts) - 1][:, rise - last :]], dim=1)
    return whole.permute(0, 3, 1, 2)
