"""The position of a tile's tokens, as a transformer is told."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from api_schemas.generation import Positions
from worker.engine.grid import Tile

_CORNER = (0, 0)

Predict = Callable[[Tensor, Sequence[Tile], Sequence[int], tuple[int, int]], Tensor]
"""(crops (B, C, h, w), tiles, branches, corner (top, left) in latent pixels) -> predictions (B, C, h, w)."""


def predict_in_place(
    predict: Predict, positions: Positions, crops: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
) -> Tensor:
    """Predict with positions counted from each tile's corner, or from the canvas'.

    Globally, a tile that runs over the edge of a wrapping canvas counts on beyond it, so there alone
    neighbours' positions jump. All tiles of a batch share one table of positions, so each is then a
    batch of its own.
    """
    if positions == "local":
        return predict(crops, tiles, branches, _CORNER)
    queries = zip(crops.split(1), tiles, branches, strict=True)
    return torch.cat(
        [predict(crop, [tile], [branch], (tile.top, tile.left)) for crop, tile, branch in queries]
    )
