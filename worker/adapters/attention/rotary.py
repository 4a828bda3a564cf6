"""Where a tile's tokens lie in a view, for transformers with rotary positions (Su et al. 2021).

A view keeps the positions that it was predicted with, its own from 0 on, which are those that the model knows. So a
query is turned from its place in its tile to its place in the view: distances count in the view's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from api_schemas.advanced import Positions
from worker.engine.attention import View
from worker.engine.canvas import Plane, Rectangle

_ROWS, _COLUMNS = 1, 2  # axes of positions; the others are the same for all tokens of pictures


@dataclass(frozen=True, slots=True)
class Rotary:
    """How a transformer turns queries and keys.

    Args:
        axes: channels of a head that turn with each axis.
        centred: whether positions count from the middle of what the transformer sees.
        patch: latent pixels a side that are one token.
    """

    theta: float
    axes: tuple[int, ...]
    centred: bool
    patch: int
    positions: Positions

    def turn(
        self, tiles: Sequence[Rectangle], canvas: Plane, views: Sequence[View], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(cosine, sine) of the angles from each token's own place to its place in its tile's view.

        Returns:
            both (B, tokens, D / 2), float32.
        """
        angles = torch.stack([self._measure(*each, canvas) for each in zip(tiles, views, strict=True)])
        return angles.cos().float().to(device), angles.sin().float().to(device)

    def place(self, areas: Sequence[Rectangle], device: torch.device) -> tuple[Tensor, Tensor]:
        """(cosine, sine) of the angles by which tokens are turned for their own places.

        Args:
            areas: that the transformer is given, of one size; the corner counts where positions are those of the canvas.

        Returns:
            both (B, tokens, D / 2), float32.
        """
        angles = torch.stack(
            [
                self._lay_angles(self._own(area.top, area.height), self._own(area.left, area.width))
                for area in areas
            ]
        )
        return angles.cos().float().to(device), angles.sin().float().to(device)

    def _own(self, start: int, extent: int) -> Tensor:
        own = torch.arange(extent // self.patch, dtype=torch.float64)
        origin = self._origin(len(own))
        return own + start / self.patch - origin if self.positions == "global" else own - origin

    def _measure(self, tile: Rectangle, view: View, canvas: Plane) -> Tensor:
        rows = self._shift(tile.top, tile.height, view.area.top, view.area.height, view.size[0], canvas, 0)
        columns = self._shift(tile.left, tile.width, view.area.left, view.area.width, view.size[1], canvas, 1)
        return self._lay_angles(rows, columns)

    def _lay_angles(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Of rows and columns of tokens, (tokens, D / 2)."""
        nothing = torch.zeros(1, 1, dtype=torch.float64)
        shifts = {_ROWS: rows[:, None], _COLUMNS: columns[None]}
        angles = [
            (shifts.get(axis, nothing)[..., None] * self._frequencies(width)).expand(
                len(rows), len(columns), -1
            )
            for axis, width in enumerate(self.axes)
        ]
        return torch.cat(angles, dim=-1).flatten(0, 1)

    def _frequencies(self, width: int) -> Tensor:
        return self.theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)

    def _shift(
        self, start: int, extent: int, first: int, whole: int, seen: int, canvas: Plane, axis: int
    ) -> Tensor:
        """From own places to those in the view, along one axis; in tokens."""
        own, tokens = torch.arange(extent // self.patch, dtype=torch.float64), seen // self.patch
        middles = start + self.patch * (own + 0.5) - first
        if canvas.wrap[axis]:
            middles = middles % canvas.size[axis]
        there = middles * seen / whole / self.patch - 0.5
        return there - self._origin(tokens) - self._own(start, extent)

    def _origin(self, tokens: int) -> int:
        return tokens - tokens // 2 if self.centred else 0


def find_rotary(network: nn.Module, patch: int, positions: Positions) -> Rotary | None:
    """None for a network without rotary positions."""
    embedder: Any = getattr(network, "rope_embedder", None) or getattr(network, "pos_embed", None)
    if not hasattr(embedder, "theta"):
        return None
    axes = embedder.axes_dims if hasattr(embedder, "axes_dims") else embedder.axes_dim
    return Rotary(embedder.theta, tuple(axes), getattr(embedder, "scale_rope", False), patch, positions)


def turn(query: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs of neighbouring channels of (B, H, Q, D) by angles whose cosines are (B, Q, D / 2)."""
    pairs = torch.unflatten(query.float(), -1, (-1, 2))
    first, second = pairs[..., 0], pairs[..., 1]
    cosine, sine = cosine[:, None], sine[:, None]
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.flatten(-2).to(query.dtype)
