"""Decoded tiles to finished rows: nothing of full height is ever held."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.decode import DecodedTile


@dataclass(frozen=True, slots=True)
class Band:
    """Rows of the picture from `top` down, (h, W, 3), uint8; bands come from the top, without a gap."""

    top: int
    rows: Tensor


@torch.inference_mode()
def stitch(tiles: Iterator[DecodedTile], width: int) -> Iterator[Band]:
    """Put the tiles of each row side by side.

    Args:
        tiles: row by row from the top, each row from the left.
        width: of the picture, pixels.
    """
    rows: list[Tensor] = []
    for tile in tiles:
        rows.append(_to_bytes(tile.image))
        if tile.place.left + tile.place.width == width:
            yield Band(tile.place.top, torch.cat(rows, dim=1))
            rows.clear()


def _to_bytes(image: Tensor) -> Tensor:
    levels = (image.float() * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 0).cpu()
