"""From the clean latent to pixels, tile by tile and still exact.

The first operations run on the whole canvas, where it is small; the rest run on decode tiles with a
halo, all tiles in step with each other, so that every group normalisation sees the whole canvas.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Group, SingleRank
from worker.engine.vae.executor import Heartbeat, MomentsPooled, TiledRun, TileFinished, lay_tiles, run_tiles
from worker.engine.vae.memory import Tail, choose_mode, choose_split, measure_head, plan_holds, survey
from worker.engine.vae.operations import Decoder, halo_of, scale_of, with_fewer_keys
from worker.engine.vae.whole import cut, run_whole, settle_with


@dataclass(frozen=True, slots=True)
class DecodedTile:
    """RGB in [-1, 1] of one decode tile, (3, h, w), and where it lies on the picture, in pixels.

    Args:
        widened: whether it was not finite in the decoder's own type, and decoded again in float32.
    """

    place: Rectangle
    image: Tensor
    widened: bool = False


Decoding = Heartbeat | MomentsPooled | DecodedTile


@torch.inference_mode()
def decode(
    latent: Tensor,
    decoder: Decoder,
    canvas: Plane,
    plan: DecodePlan,
    group: Group | None = None,
    *,
    moments: Sequence[Tensor] | None = None,
    part: Rectangle | None = None,
) -> Iterator[Decoding]:
    """Decode the latent (C, H, W) of a canvas into tiles, row by row from the top, after the moments that they go by.

    In exact mode the result equals an untiled decode up to float rounding. In bounded mode the
    statistics come from a sample of tiles, the same for all tiles, and of a large canvas attention sees means of
    neighbours, so no seam is possible. Ranks share the tiles out; every rank gets all of them, and the bytes do not depend on how many there are.

    Args:
        moments: those of an earlier decode, instead of this canvas' own: equal latents then give equal bytes.
        part: of the canvas; only tiles that overlap it are decoded.

    Raises:
        MomentsError: the given ones are not of this decoder.
        NonFiniteImageError: NaN or infinity, in float32 too.
    """
    group = group or SingleRank()
    split, exact = choose_split(latent, decoder, plan), choose_mode(latent, decoder, plan) == "exact"
    if moments is not None:
        decoder = replace(decoder, operations=settle_with(decoder.operations, moments))
    head = decoder.operations[:split]
    head = head if exact else with_fewer_keys(head, plan.most_keys)
    whole = cut(latent[None], canvas, canvas.whole, halo_of(head))
    state, measured = run_whole(decoder, head, whole, group)
    tail, behind = Tail.of(decoder, split, state.owned), canvas.scaled(scale_of(head))
    tiles, halo = lay_tiles(behind, plan.tile_size * scale_of(head)), halo_of(tail.operations)
    tiled = TiledRun(
        decoder,
        tail.operations,
        tiles,
        lambda tile: replace(cut(tail.state, behind, tile, halo), wide=state.wide),
        exact=exact,
        choose_holds=lambda own: plan_holds(tail, own, plan),
        wanted=None if part is None else _find_overlapping(tiles, part, canvas, scale_of(head)),
    )
    for event in run_tiles(tiled, plan, group):
        match event:
            case TileFinished(place, value, widened):
                yield DecodedTile(place, value.float(), widened)
            case MomentsPooled():
                yield MomentsPooled(tuple(moments or (*measured, *event.moments)))
            case Heartbeat():
                yield event


def predict_held(latent: Tensor, decoder: Decoder, plan: DecodePlan) -> int:
    """Bytes that an exact decode holds of the device at the most, beside the work space of a tile.

    Args:
        latent: only its shape counts; it may lie on no device.
        plan: says whether to recompute.
    """
    split = choose_split(latent, decoder, plan)
    scale = scale_of(decoder.operations[:split])
    canvas = Plane(latent.shape[-2], latent.shape[-1]).scaled(scale)
    depth = decoder.channels[split - 1] if split else len(latent)
    state = torch.empty(1, depth, *canvas.size, dtype=decoder.dtype, device="meta")
    tail, tiles = Tail.of(decoder, split, state), lay_tiles(canvas, plan.tile_size * scale)
    sites, holds = survey(tail, tiles), plan_holds(tail, tiles, plan)
    held = max((sites[hold].size_bytes for hold in holds if hold is not None), default=0)
    return max(measure_head(latent, decoder, split), state.nbytes + min(held, plan.memory_bytes))


def _find_overlapping(tiles: Sequence[Rectangle], part: Rectangle, canvas: Plane, scale: int) -> list[int]:
    """Which tiles a part of the canvas lies on, at least with one pixel."""
    pieces = [piece.scaled(scale) for piece, _ in canvas.pieces(part)]
    return [index for index, tile in enumerate(tiles) if any(_overlap(tile, piece) for piece in pieces)]


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    rows = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    columns = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    return rows > 0 and columns > 0
