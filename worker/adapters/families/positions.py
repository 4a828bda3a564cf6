"""The positions of a tile's tokens, for transformers that take them as an input."""

from collections.abc import Callable

import torch
from torch import Tensor

from api_schemas.advanced import Positions
from worker.engine.ensemble import Batch

_CORNER = (0, 0)


def place_tokens(
    rows: int, columns: int, corner: tuple[float, float], axes: int, device: torch.device
) -> Tensor:
    """FLUX' `img_ids` (rows * columns, axes): axis 1 counts rows from the corner's on, axis 2 columns, others stay 0.

    Made on the device, so that nothing waits for a copy; float32, since bfloat16 cannot tell 257 from 256.
    """
    ids = torch.zeros(rows, columns, axes, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None] + corner[0]
    ids[..., 2] = torch.arange(columns, device=device) + corner[1]
    return ids.flatten(0, 1)


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
