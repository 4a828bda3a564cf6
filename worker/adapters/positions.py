"""Where a transformer believes a tile's tokens to lie."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from api_schemas.generation import Positions
from worker.engine.grid import Tile

_CORNER = (0, 0)

Predict = Callable[[Tensor, Sequence[int], tuple[int, int]], Tensor]
"""(crops (B, C, h, w), branches, corner (top, left) in latent pixels) -> predictions (B, C, h, w)."""


def predict_in_place(
    predict: Predict, positions: Positions, crops: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
) -> Tensor:
    """Predict with positions counted from each tile's corner, or from the canvas'.

    Globally, a tile that runs over the edge of a wrapping canvas counts on beyond it, so there alone
    neighbours' positions jump. All tiles of a batch share one table of positions, so each is then a
    batch of its own.
    """
    if positions == "local":
        return predict(crops, branches, _CORNER)
    voices = zip(crops.split(1), branches, tiles, strict=True)
    return torch.cat([predict(crop, [branch], (tile.top, tile.left)) for crop, branch, tile in voices])
