"""From pixels to the clean latent, tile by tile, without a seam.

Group normalisations get their statistics from a sample of the tiles, the same for all: exact while the
picture has no more tiles than that, else an estimate that no border between tiles can show. Attention over more than
`DecodePlan.most_keys` pixels sees means of neighbours.
"""

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from worker.engine.canvas import Paint, Plane, Rectangle
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Group, SingleRank
from worker.engine.vae.activation import Activation
from worker.engine.vae.executor import Heartbeat, MomentsPooled, TiledRun, TileFinished, lay_tiles, run_tiles
from worker.engine.vae.operations import Encoder, halo_of, shrink_of, with_fewer_keys, with_trims
from worker.engine.vae.whole import cut, run_whole


def encode(
    paint: Paint, encoder: Encoder, canvas: Plane, plan: DecodePlan, group: Group | None = None
) -> Tensor:
    """`encode_in_steps` in one go."""
    steps = encode_in_steps(paint, encoder, canvas, plan, group)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def encode_in_steps(
    paint: Paint, encoder: Encoder, canvas: Plane, plan: DecodePlan, group: Group | None = None
) -> Generator[Heartbeat, None, Tensor]:
    """The latent (C, H, W), float32, of a canvas whose picture is never held whole.

    Ranks share the tiles out, and all get the same bytes. What is held whole is the canvas after
    the last stride, as wide as the encoder there.

    Args:
        paint: gives RGB in [-1, 1], (3, h, w), of a rectangle in pixels; on a wrapping axis it may
            lie over the edge.

    Raises:
        NonFiniteImageError: NaN or infinity, in float32 too.
    """
    group = group or SingleRank()
    state = yield from _encode_tiles(_lay_tiles(paint, encoder, canvas, plan.tile_size), plan, group)
    narrow = state.to(encoder.dtype)
    wide = not narrow.isfinite().all()  # a tile was computed in float32, and must remain so
    narrow_canvas = canvas.scaled(shrink_of(encoder.whole))
    start = cut(state if wide else narrow, narrow_canvas, narrow_canvas.whole, halo_of(encoder.whole))
    whole = with_fewer_keys(encoder.whole, plan.most_keys)
    latent, _ = run_whole(encoder, whole, replace(start, wide=wide), group)
    return latent.owned[0].float()


def reach_of(encoder: Encoder) -> int:
    """How far around a latent pixel the picture counts for it, statistics and attention apart; latent pixels."""
    operations = [*encoder.tiled, *encoder.whole]
    return halo_of(operations) // shrink_of(operations)


def _lay_tiles(paint: Paint, encoder: Encoder, canvas: Plane, size: int) -> TiledRun:
    """Tiles of that size, latent pixels, on the canvas' picture."""
    operations = list(with_trims(encoder.tiled, at_joins=False))
    scale, halo = shrink_of([*encoder.tiled, *encoder.whole]), halo_of(operations)
    picture = canvas.scaled(scale)

    def begin(tile: Rectangle) -> Activation:
        outer, core = picture.halo(tile, halo)
        return Activation(paint(outer)[None], core)

    return TiledRun(encoder, operations, lay_tiles(picture, size * scale), begin)


def _encode_tiles(tiled: TiledRun, plan: DecodePlan, group: Group) -> Generator[Heartbeat, None, Tensor]:
    """The state (1, C, H, W) of the canvas after the operations that need tiles; float32 if a tile needed it."""
    finished: list[TileFinished] = []
    for event in run_tiles(tiled, plan, group):
        match event:
            case Heartbeat():
                yield event
            case TileFinished():
                finished.append(event)
            case MomentsPooled():
                pass  # of no use again: the picture will not be the same
    return _join(finished)


def _join(tiles: list[TileFinished]) -> Tensor:
    last = tiles[-1].place
    dtype = torch.float32 if any(tile.widened for tile in tiles) else tiles[0].value.dtype
    height, width = last.top + last.height, last.left + last.width
    canvas = tiles[0].value.new_empty(1, len(tiles[0].value), height, width, dtype=dtype)
    for tile in tiles:
        tile.place.slice(canvas).copy_(tile.value)
    return canvas
