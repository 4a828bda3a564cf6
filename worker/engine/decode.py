"""From the clean latent to pixels, tile by tile and still exact.

The first operations run on the whole canvas, where it is small; the rest run on decode tiles with a
halo, all tiles in step with each other, so that every group normalisation sees the whole canvas.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.engine.activations import Activation, Held
from worker.engine.decoder import (
    Attend,
    Decoder,
    Fork,
    Join,
    Local,
    Normalize,
    Operation,
    Trim,
    halo_of,
    scale_of,
)
from worker.engine.grid import Tile
from worker.engine.memory import choose_mode, choose_split
from worker.engine.moments import Moments
from worker.engine.plan import DecodePlan

SAMPLE_TILES = 16

Cut = Callable[[Tile], Activation]


@dataclass(frozen=True, slots=True)
class DecodedTile:
    """RGB in [-1, 1] of one decode tile, (3, h, w), and where it lies on the picture, in pixels."""

    place: Tile
    image: Tensor


@torch.inference_mode()
def decode(
    latent: Tensor, decoder: Decoder, wrap: tuple[bool, bool], plan: DecodePlan
) -> Iterator[DecodedTile]:
    """Decode a canvas (C, H, W) into tiles, row by row from the top.

    In exact mode the result equals an untiled decode up to float rounding. In bounded mode the
    statistics come from a sample of tiles, the same for all tiles, so no seam is possible.
    """
    split = choose_split(latent, decoder, plan)
    head, tail = decoder.operations[:split], _with_trims(decoder.operations[split:])
    canvas = _decode_whole(latent, head, wrap)
    tiles = _lay_decode_tiles(canvas, plan.tile_size * scale_of(head))
    halo = halo_of(tail)
    exact = choose_mode(latent, decoder, plan) == "exact"
    for tile, activation in _decode_tiles(
        tiles, lambda tile: cut(canvas, tile, halo, wrap), tail, exact, plan
    ):
        yield DecodedTile(tile.scaled(scale_of(tail)), activation.owned[0])


def _with_trims(operations: Sequence[Operation]) -> list[Operation]:
    """Drop the part of the halo that no later operation needs, wherever the tile grows."""
    trimmed: list[Operation] = []
    for index, operation in enumerate(operations):
        trimmed.append(operation)
        if isinstance(operation, Local) and operation.scale > 1:
            trimmed.append(Trim(halo_of(operations[index + 1 :])))
    return trimmed


def _decode_whole(latent: Tensor, head: Sequence[Operation], wrap: tuple[bool, bool]) -> Tensor:
    whole = Tile(0, 0, latent.shape[-2], latent.shape[-1])
    return _run(head, cut(latent[None], whole, halo_of(head), wrap)).owned


def cut(canvas: Tensor, tile: Tile, halo: int, wrap: tuple[bool, bool]) -> Activation:
    """A tile of (1, C, H, W) with a halo that goes round a wrapping axis and ends at a border."""
    rows, above = _reach(tile.top, tile.height, canvas.shape[-2], halo, wrap[0])
    columns, before = _reach(tile.left, tile.width, canvas.shape[-1], halo, wrap[1])
    value = canvas[..., rows.to(canvas.device), :][..., columns.to(canvas.device)]
    return Activation(value, Tile(above, before, tile.height, tile.width))


def _reach(start: int, extent: int, length: int, halo: int, wraps: bool) -> tuple[Tensor, int]:
    """Indices on one axis, and how many of them lie before the tile."""
    if wraps:
        return torch.arange(start - halo, start + extent + halo) % length, halo
    first = max(start - halo, 0)
    return torch.arange(first, min(start + extent + halo, length)), start - first


def _lay_decode_tiles(canvas: Tensor, size: int) -> list[Tile]:
    height, width = canvas.shape[-2:]
    return [
        Tile(top, left, min(size, height - top), min(size, width - left))
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def _decode_tiles(
    tiles: Sequence[Tile], cut_tile: Cut, tail: list[Operation], exact: bool, plan: DecodePlan
) -> Iterator[tuple[Tile, Activation]]:
    barriers = [index for index, operation in enumerate(tail) if isinstance(operation, Normalize)]
    with tempfile.TemporaryDirectory(dir=plan.spill_dir, prefix="decode-") as folder:
        if barriers and (exact or len(tiles) <= SAMPLE_TILES):
            held = Held(plan.memory_bytes, Path(folder))
            _settle_statistics(tiles, cut_tile, tail, barriers, held)
            rest = tail[barriers[-1] :]
            yield from ((tile, _run(rest, held.take(index))) for index, tile in enumerate(tiles))
        else:
            sample = tiles[:: -(-len(tiles) // SAMPLE_TILES)]
            _settle_statistics(sample, cut_tile, tail, barriers, Held(plan.memory_bytes, Path(folder)))
            yield from ((tile, _run(tail, cut_tile(tile))) for tile in tiles)


def _settle_statistics(
    tiles: Sequence[Tile], cut_tile: Cut, tail: list[Operation], barriers: Sequence[int], held: Held
) -> None:
    """Walk the tiles in step; each normalisation in `tail` becomes a local operation with pooled moments."""
    start = 0
    for barrier in barriers:
        normalize = tail[barrier]
        assert isinstance(normalize, Normalize)
        moments = Moments(normalize.norm)
        for index, tile in enumerate(tiles):
            activation = _run(tail[start:barrier], held.take(index) if start else cut_tile(tile))
            moments.add(activation.owned)
            held.put(index, activation)
        tail[barrier] = Local(moments.apply)
        start = barrier


def _run(operations: Sequence[Operation], activation: Activation) -> Activation:
    for operation in operations:
        activation = _apply(operation, activation)
    return activation


def _apply(operation: Operation, activation: Activation) -> Activation:
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
        case Attend(apply=attend):
            return activation.enlarged(attend(value, activation.owned), 1)
        case Normalize(norm=norm):
            moments = Moments(norm)
            moments.add(activation.owned)
            return activation.enlarged(moments.apply(value), 1)
