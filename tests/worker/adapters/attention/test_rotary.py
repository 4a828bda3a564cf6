"""Turned queries against diffusers' own rotary positions at the place where a token lies in a view."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, apply_rotary_emb_qwen
from torch import Tensor

from worker.adapters.attention.rotary import Rotary, turn
from worker.engine.attention import View
from worker.engine.canvas import Plane, Rectangle

AXES = (4, 6, 6)
CANVAS = Plane(48, 32, (False, True))
CPU = torch.device("cpu")


def see(area: Rectangle, height: int, width: int) -> View:
    return View(torch.zeros(1, height, width), torch.zeros(()), area)


def place(rows: Tensor, columns: Tensor) -> Tensor:
    """FLUX' ids (tokens, 3)."""
    grid = torch.zeros(len(rows), len(columns), 3)
    grid[..., 1], grid[..., 2] = rows[:, None], columns
    return grid.flatten(0, 1)


def rotate(query: Tensor, ids: Tensor) -> Tensor:
    return apply_rotary_emb(query, FluxPosEmbed(10_000, list(AXES))(ids))


# Of a tile of 8 x 12 latent pixels at (20, 28), in tokens of two: 4 x 6 of them; the second half lies over the edge.
TILE = Rectangle(20, 28, 8, 12)


@pytest.mark.parametrize("positions", ["local", "global"])
@pytest.mark.parametrize(
    ("view", "rows", "columns"),
    [
        # The whole canvas at a third of its height and half of its width: a token is 6 rows, and 4 columns.
        (see(CANVAS.whole, 16, 16), (torch.arange(4) * 2 + 21) / 6 - 0.5, torch.tensor([29, 31, 1, 3, 5, 7]) / 4 - 0.5),
        # Sixteen rows and twenty-four columns around it, at half size.
        (see(Rectangle(16, 22, 16, 24), 8, 12), (torch.arange(4) * 2 + 5) / 4 - 0.5, (torch.arange(6) * 2 + 7) / 4 - 0.5),
    ],
)  # fmt: skip
def test_a_query_is_turned_to_its_place_in_the_view(
    view: View, rows: Tensor, columns: Tensor, positions: str
) -> None:
    query = torch.randn(1, 2, 24, 16)
    corner = (TILE.top / 2, TILE.left / 2) if positions == "global" else (0, 0)
    own = rotate(query, place(torch.arange(4) + corner[0], torch.arange(6) + corner[1]))
    rotary = Rotary(10_000, AXES, False, 2, positions)
    turned = turn(own, *rotary.turn([TILE], CANVAS, [view], CPU))
    torch.testing.assert_close(turned, rotate(query, place(rows, columns)), rtol=1e-4, atol=1e-4)


def test_positions_that_are_counted_from_the_middle() -> None:
    """Qwen-Image's: a view as large as its tile shows it, so nothing turns but where a middle lies elsewhere."""
    rope = QwenEmbedRope(10_000, list(AXES), scale_rope=True)
    query = torch.randn(1, 24, 2, 16)
    own, _ = rope((1, 4, 6), max_txt_seq_len=1, device=CPU)
    seen, _ = rope((1, 6, 8), max_txt_seq_len=1, device=CPU)
    # A view of 12 x 16 latent pixels, not reduced, whose first token is the tile's second of both axes before it.
    view = see(Rectangle(18, 26, 12, 16), 12, 16)
    there = seen.unflatten(0, (6, 8))[1:5, 1:7].flatten(0, 1)
    turned = turn(
        apply_rotary_emb_qwen(query, own, use_real=False).transpose(1, 2),
        *Rotary(10_000, AXES, True, 2, "local").turn([TILE], CANVAS, [view], CPU),
    )
    expected = apply_rotary_emb_qwen(query, there, use_real=False).transpose(1, 2)
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-4)
