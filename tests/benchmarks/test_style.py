"""The measure of kept structure."""

import pytest
import torch

from benchmarks.style import correlate_edges


def draw(shift: int = 0) -> torch.Tensor:
    """Two discs on a ground, (3, 256, 384), uint8."""
    rows, columns = torch.arange(256)[:, None], torch.arange(384)[None]
    middles = ((96, 120 + shift, 50), (170, 260 + shift, 60))
    inside = [(rows - top) ** 2 + (columns - left) ** 2 < radius**2 for top, left, radius in middles]
    return (60 + 120 * (inside[0] | inside[1])).expand(3, -1, -1).to(torch.uint8)


def test_edges_agree_where_they_lie_at_the_same_places_whatever_the_tones() -> None:
    noise = torch.randint(-30, 30, (3, 256, 384), generator=torch.Generator().manual_seed(1))
    assert correlate_edges(draw(), draw()) == pytest.approx(1)
    assert correlate_edges(draw(), 255 - draw()) == pytest.approx(1, abs=0.01)
    assert correlate_edges(draw(), (draw() + noise).clamp(0, 255).to(torch.uint8)) > 0.9
    assert correlate_edges(draw(), draw(shift=40)) < 0.5
