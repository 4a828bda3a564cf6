"""Decoded tiles to finished rows: nothing of full height is ever held."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle
from worker.engine.plan import BitDepth, DecodePlan
from worker.engine.ranks import Group
from worker.engine.vae.decode import DecodedTile, Decoding, decode
from worker.engine.vae.executor import Heartbeat, MomentsPooled, lay_tiles
from worker.engine.vae.operations import Decoder
from worker.engine.warned import Warned


@dataclass(frozen=True, slots=True)
class Band:
    """Rows of the picture from `top` down, (h, W, 3), uint8 or uint16; bands come from the top, without a gap."""

    top: int
    rows: Tensor


Stitching = Band | Warned | Heartbeat | MomentsPooled


def decode_part(
    latent: Tensor,
    decoder: Decoder,
    canvas: Plane,
    plan: DecodePlan,
    group: Group,
    *,
    moments: Sequence[Tensor] | None = None,
    part: Rectangle | None = None,
) -> Iterator[Decoding]:
    """As `decode`, with tiles of grey where a part is asked for and they do not lie on it."""
    tiles = decode(latent, decoder, canvas, plan, group, moments=moments, part=part)
    if part is None:
        return tiles
    places = lay_tiles(canvas.scaled(decoder.scale), plan.tile_size * decoder.scale)
    return _fill_up(tiles, places, latent.device)


def _fill_up(
    tiles: Iterator[Decoding], places: Sequence[Rectangle], device: torch.device
) -> Iterator[Decoding]:
    """Tiles of all places in turn, grey where none was decoded."""
    grey, waiting = torch.zeros(1, 1, 1, device=device), iter(places)
    for tile in tiles:
        if isinstance(tile, DecodedTile):
            yield from (_fill(place, grey) for place in iter(waiting.__next__, tile.place))
        yield tile
    yield from (_fill(place, grey) for place in waiting)


def _fill(place: Rectangle, grey: Tensor) -> DecodedTile:
    return DecodedTile(place, grey.expand(3, place.height, place.width))


@torch.inference_mode()
def stitch(
    tiles: Iterator[Decoding],
    width: int,
    shown: tuple[int, int] | None = None,
    bit_depth: BitDepth = 8,
) -> Iterator[Stitching]:
    """Put the tiles of each row side by side, with a warning for rows that needed float32; other events pass.

    Args:
        tiles: row by row from the top, each row from the left.
        width: of the canvas, pixels.
        shown: (height, width) of the picture, which is the canvas' top left part; None: all of it.
        bit_depth: of the rows.
    """
    row: list[DecodedTile] = []
    for tile in tiles:
        if not isinstance(tile, DecodedTile):
            yield tile
            continue
        row.append(tile)
        if tile.place.left + tile.place.width == width:
            yield from _finish(row, shown or (tile.place.top + tile.place.height, width), bit_depth)
            row.clear()


def _finish(
    row: Sequence[DecodedTile], shown: tuple[int, int], bit_depth: BitDepth
) -> Iterator[Band | Warned]:
    (height, width), top = shown, row[0].place.top
    if top < height:
        yield from _tell_widened(row)
        rows = torch.cat([_to_levels(each.image, bit_depth) for each in row], dim=1)
        yield Band(top, rows[: height - top, :width].cpu())


def _tell_widened(row: Sequence[DecodedTile]) -> Iterator[Warned]:
    places = [tile.place for tile in row if tile.widened]
    if places:
        top, bottom = places[0].top, places[0].top + places[0].height
        columns = ", ".join(f"{place.left} to {place.left + place.width}" for place in places)
        yield Warned(
            "decode_widened",
            f"the decoder overflowed in rows {top} to {bottom}, columns {columns} px; decoded them in float32",
        )


def _to_levels(image: Tensor, bit_depth: BitDepth) -> Tensor:
    """RGB in [-1, 1], (3, h, w), to (h, w, 3), uint8 or uint16, still on the device."""
    half = (2**bit_depth - 1) / 2
    levels = (image.float() * half + half).round_().clamp_(0, 2 * half)
    return levels.to(torch.uint8 if bit_depth == 8 else torch.uint16).permute(1, 2, 0)
