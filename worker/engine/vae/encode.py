"""From pixels to the clean latent, tile by tile, without a seam.

Group normalisations get their statistics from a sample of the tiles, the same for all: exact while the
picture has no more tiles than that, else an estimate that no border between tiles can show.
"""

from collections.abc import Callable, Generator
from dataclasses import replace

import torch
from torch import Tensor

from worker.engine.canvas import Rectangle
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Alone, Group
from worker.engine.vae.activation import Activation
from worker.engine.vae.executor import MomentsPooled, SignOfLife, TiledRun, TileFinished, lay_tiles, run_tiles
from worker.engine.vae.operations import Encoder, halo_of, shrink_of, with_trims
from worker.engine.vae.whole import cut, grow, run_whole

Paint = Callable[[Rectangle], Tensor]


def encode(
    paint: Paint,
    height: int,
    width: int,
    encoder: Encoder,
    wrap: tuple[bool, bool],
    plan: DecodePlan,
    group: Group | None = None,
) -> Tensor:
    """`encode_in_steps` in one go."""
    steps = encode_in_steps(paint, height, width, encoder, wrap, plan, group)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def encode_in_steps(
    paint: Paint,
    height: int,
    width: int,
    encoder: Encoder,
    wrap: tuple[bool, bool],
    plan: DecodePlan,
    group: Group | None = None,
) -> Generator[SignOfLife, None, Tensor]:
    """The latent (C, height, width), float32, of a picture that is never held whole.

    Ranks share the tiles out, and all get the same bytes. What is held whole is the canvas behind
    the last stride, as wide as the encoder there.

    Args:
        paint: gives RGB in [-1, 1], (3, h, w), of a rectangle in pixels; on a wrapping axis it may
            lie over the edge.
        height: of the latent; so is `width`.

    Raises:
        NonFiniteImageError: NaN or infinity, in float32 too.
    """
    group, scale = group or Alone(), shrink_of([*encoder.tiled, *encoder.whole])
    tiled = _lay_tiles(paint, (height * scale, width * scale), encoder, wrap, plan.tile_size * scale)
    canvas = yield from _encode_tiles(tiled, plan, group)
    narrow = canvas.to(encoder.dtype)
    wide = not narrow.isfinite().all()  # a tile was computed in float32, and needs it still
    whole = Rectangle(0, 0, canvas.shape[-2], canvas.shape[-1])
    start = cut(canvas if wide else narrow, whole, halo_of(encoder.whole), wrap)
    latent, _ = run_whole(encoder, encoder.whole, replace(start, wide=bool(wide)), group)
    return latent.owned[0].float()


def _lay_tiles(
    paint: Paint, size: tuple[int, int], encoder: Encoder, wrap: tuple[bool, bool], side: int
) -> TiledRun:
    """Tiles of that side on a picture of that (height, width), pixels."""
    operations = list(with_trims(encoder.tiled, at_joins=False))
    halo = halo_of(operations)

    def begin(tile: Rectangle) -> Activation:
        outer, core = grow(tile, halo, size, wrap)
        return Activation(paint(outer)[None], core)

    return TiledRun(encoder, operations, lay_tiles(*size, side), begin)


def _encode_tiles(tiled: TiledRun, plan: DecodePlan, group: Group) -> Generator[SignOfLife, None, Tensor]:
    """The canvas (1, C, H, W) behind the operations that need tiles; float32 if a tile needed it."""
    finished: list[TileFinished] = []
    for event in run_tiles(tiled, plan, group):
        match event:
            case SignOfLife():
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
