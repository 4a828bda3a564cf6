"""The position of a tile's tokens, as a transformer is told."""

from collections.abc import Callable

import torch
from torch import Tensor

from api_schemas.generation import Positions
from worker.engine.ensemble import Batch

_CORNER = (0, 0)

Predict = Callable[[Batch, tuple[int, int]], Tensor]
"""(batch, corner (top, left) in latent pixels) -> predictions (B, C, h, w)."""


def predict_in_place(predict: Predict, positions: Positions, batch: Batch) -> Tensor:
    """Predict with positions counted from each tile's corner, or from the canvas'.

    Globally, a tile that runs over the edge of a wrapping canvas counts on beyond it, so there alone
    neighbours' positions jump. All tiles of a batch share one table of positions, so each is then a
    batch of its own.
    """
    if positions == "local":
        return predict(batch, _CORNER)
    return torch.cat([predict(each, (each.tiles[0].top, each.tiles[0].left)) for each in batch.split()])
