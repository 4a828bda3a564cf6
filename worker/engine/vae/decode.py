"""From the clean latent to pixels, tile by tile and still exact.

The first operations run on the whole canvas, where it is small; the rest run on decode tiles with a
halo, all tiles in step with each other, so that every group normalisation sees the whole canvas.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from worker.engine.canvas import Rectangle
from worker.engine.errors import NonFiniteImageError
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Alone, Group
from worker.engine.vae.activation import Held, spare_host_bytes
from worker.engine.vae.executor import TiledDecoder, cut, run
from worker.engine.vae.memory import choose_holds, choose_mode, choose_split, find_stops, measure_head, survey
from worker.engine.vae.operations import Decoder, Join, Local, Operation, Trim, halo_of, scale_of

SAMPLE_TILES = 16


@dataclass(frozen=True, slots=True)
class DecodedTile:
    """RGB in [-1, 1] of one decode tile, (3, h, w), and where it lies on the picture, in pixels.

    Args:
        widened: whether it was not finite in the decoder's own type, and decoded again in float32.
    """

    place: Rectangle
    image: Tensor
    widened: bool = False


@torch.inference_mode()
def decode(
    latent: Tensor, decoder: Decoder, wrap: tuple[bool, bool], plan: DecodePlan, group: Group | None = None
) -> Iterator[DecodedTile]:
    """Decode a canvas (C, H, W) into tiles, row by row from the top.

    In exact mode the result equals an untiled decode up to float rounding. In bounded mode the
    statistics come from a sample of tiles, the same for all tiles, so no seam is possible. Ranks
    share the tiles out; every rank gets all of them, and the bytes do not depend on how many there are.

    Raises:
        NonFiniteImageError: NaN or infinity, in float32 too.
    """
    group = group or Alone()
    split = choose_split(latent, decoder, plan)
    head, (tail, channels) = decoder.operations[:split], with_trims(decoder, split)
    canvas = _decode_whole(latent, decoder, head, wrap, group)
    wide = canvas.dtype is not decoder.dtype and split > 0
    tiles, halo = _lay_decode_tiles(canvas, plan.tile_size * scale_of(head)), halo_of(tail)
    with tempfile.TemporaryDirectory(dir=plan.spill_dir, prefix="decode-") as folder:
        held = Held(plan.memory_bytes, spare_host_bytes(), Path(folder))
        recompute = latent.is_cuda if plan.recompute is None else plan.recompute
        executor = TiledDecoder(
            decoder, tail, channels, canvas, tiles, lambda tile: cut(canvas, tile, halo, wrap), held, group,
            recompute=recompute, wide=wide,
        )  # fmt: skip
        _settle(executor, tiles, exact=choose_mode(latent, decoder, plan) == "exact")
        for _, row in groupby(range(len(tiles)), key=lambda index: tiles[index].top):
            indices = list(row)
            for index, done in zip(indices, executor.finish(indices), strict=True):
                yield DecodedTile(tiles[index].scaled(scale_of(tail)), done.image, done.widened)


def predict_held(latent: Tensor, decoder: Decoder, plan: DecodePlan) -> int:
    """Bytes that an exact decode holds of the device at the most, beside the work space of a tile.

    Args:
        latent: only its shape counts; it may lie on no device.
        plan: says whether to recompute.
    """
    split = choose_split(latent, decoder, plan)
    head, (tail, channels) = decoder.operations[:split], with_trims(decoder, split)
    depth = decoder.channels[split - 1] if split else len(latent)
    height, width = (side * scale_of(head) for side in latent.shape[-2:])
    canvas = torch.empty(1, depth, height, width, dtype=decoder.dtype, device="meta")
    tiles = _lay_decode_tiles(canvas, plan.tile_size * scale_of(head))
    sites = survey(tail, channels, tiles, (depth, height, width), halo_of(tail), canvas.itemsize)
    stops = list(find_stops(tail).values())
    holds = choose_holds(sites, stops, plan.memory_bytes) if plan.recompute else stops
    held = max((sites[hold].size_bytes for hold in holds if hold is not None), default=0)
    return max(measure_head(latent, decoder, split), canvas.nbytes + min(held, plan.memory_bytes))


def _settle(executor: TiledDecoder, tiles: Sequence[Rectangle], *, exact: bool) -> None:
    everything = range(len(tiles))
    if exact or len(tiles) <= SAMPLE_TILES:
        executor.settle(everything)
    else:
        sample = everything[:: -(-len(tiles) // SAMPLE_TILES)]
        executor.settle(sample)
        executor.forget(sample)


def with_trims(decoder: Decoder, split: int) -> tuple[list[Operation], list[int]]:
    """The operations from `split` on, with their channels, without the part of the halo that none will need.

    It is dropped where there is most of it, behind what enlarges, and where a tile may be held.
    """
    operations, channels = decoder.operations[split:], decoder.channels[split:]
    trimmed: list[tuple[Operation, int]] = []
    for index, (operation, width) in enumerate(zip(operations, channels, strict=True)):
        trimmed.append((operation, width))
        if isinstance(operation, Join) or (isinstance(operation, Local) and operation.scale > 1):
            trimmed.append((Trim(halo_of(operations[index + 1 :])), width))
    return [operation for operation, _ in trimmed], [width for _, width in trimmed]


def _decode_whole(
    latent: Tensor, decoder: Decoder, head: Sequence[Operation], wrap: tuple[bool, bool], group: Group
) -> Tensor:
    """The canvas (1, C, H, W) behind the head; in float32 if it is not finite in the decoder's own type."""
    whole = cut(latent[None], Rectangle(0, 0, latent.shape[-2], latent.shape[-1]), halo_of(head), wrap)
    canvas = run(head, whole, group).owned
    if not canvas.isfinite().all() and decoder.dtype is not torch.float32:
        with decoder.widened():
            canvas = run(head, whole, group).owned
    if not canvas.isfinite().all():
        raise NonFiniteImageError("the half-decoded canvas is not finite")
    return canvas


def _lay_decode_tiles(canvas: Tensor, size: int) -> list[Rectangle]:
    height, width = canvas.shape[-2:]
    return [
        Rectangle(top, left, min(size, height - top), min(size, width - left))
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]
