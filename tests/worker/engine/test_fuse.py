"""The weighted mean of tiles' predictions, against the formula pixel by pixel and scipy's windows."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import windows
from torch import Tensor

from tests.worker.engine.test_grid import grids
from worker.engine.canvas import Plane, Rectangle
from worker.engine.fuse import Fusion, blending_window
from worker.engine.grid import TileGrid

CPU = torch.device("cpu")


def fuse(grid: TileGrid, predictions: list[Tensor], masks: list[Tensor] | None = None) -> Tensor:
    fusion = Fusion(grid.canvas, torch.empty(len(predictions[0]), *grid.canvas.size))
    for tile, prediction, mask in zip(
        grid.tiles, predictions, masks or [None] * len(predictions), strict=True
    ):
        fusion.add(tile, prediction, mask)
    return fusion.mean()


def predict(grid: TileGrid, channels: int = 2) -> list[Tensor]:
    """Anything, for each tile."""
    return [torch.randn(channels, tile.height, tile.width) for tile in grid.tiles]


def fuse_by_pixel(grid: TileGrid, predictions: list[Tensor]) -> np.ndarray:
    """Jiménez 2023, eq. 3, in double precision: each tile's every pixel is sought on the canvas."""
    height, width = grid.canvas.size
    sums, weights = np.zeros((len(predictions[0]), height, width)), np.zeros((height, width))
    for tile, prediction in zip(grid.tiles, predictions, strict=True):
        down, right = windows.cosine(tile.height) ** 2, windows.cosine(tile.width) ** 2
        for row in range(tile.height):
            for column in range(tile.width):
                place = (tile.top + row) % height, (tile.left + column) % width
                weight = down[row] * right[column]
                sums[:, *place] += weight * prediction[:, row, column].double().numpy()
                weights[place] += weight
    return sums / weights


@given(st.integers(1, 200), st.integers(1, 200))
def test_the_window_is_the_raised_cosine_in_both_axes(height: int, width: int) -> None:
    """(1 - cos 2πx) / 2 = sin² πx at half pixels, the square of what scipy calls the cosine window."""
    expected = np.outer(windows.cosine(height) ** 2, windows.cosine(width) ** 2)
    np.testing.assert_allclose(blending_window(height, width, CPU), expected, rtol=1e-5, atol=1e-7)


@given(st.integers(1, 2048), st.integers(1, 64))
def test_the_window_is_symmetric_and_never_zero(height: int, width: int) -> None:
    """So a pixel that a tile covers counts, also in its outermost row."""
    window = blending_window(height, width, CPU)
    torch.testing.assert_close(window, window.flip(0))
    torch.testing.assert_close(window, window.flip(1))
    assert window.min() > 0


@given(grids())
def test_fuse_inverts_crop(grid: TileGrid) -> None:
    canvas = torch.randn(3, *grid.canvas.size)
    fused = fuse(grid, [grid.canvas.gather(canvas, tile) for tile in grid.tiles])
    torch.testing.assert_close(fused, canvas, rtol=0, atol=1e-5)


@given(grids(), st.floats(-1e3, 1e3, width=32))
def test_a_constant_comes_back(grid: TileGrid, value: float) -> None:
    fused = fuse(grid, [torch.full_like(each, value) for each in predict(grid)])
    torch.testing.assert_close(fused, torch.full_like(fused, value), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("wrap", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("tile_size", "overlap", "shift"), [(8, 0, (0, 0)), (8, 3, (5, 2)), (7, 6, (1, 9))])
def test_any_predictions_are_averaged_as_the_formula_says(
    wrap: tuple[bool, bool], tile_size: int, overlap: int, shift: tuple[int, int]
) -> None:
    grid = TileGrid.lay(Plane(17, 13, wrap), tile_size=tile_size, overlap=overlap, shift=shift)
    predictions = predict(grid)
    np.testing.assert_allclose(
        fuse(grid, predictions), fuse_by_pixel(grid, predictions), rtol=1e-4, atol=1e-5
    )


@given(grids())
def test_no_pixel_leaves_the_range_of_the_predictions(grid: TileGrid) -> None:
    predictions = [each.sigmoid() for each in predict(grid)]
    fused = fuse(grid, predictions)
    lowest, highest = min(each.min() for each in predictions), max(each.max() for each in predictions)
    assert lowest - 1e-6 <= fused.min()
    assert fused.max() <= highest + 1e-6


@given(grids(), st.randoms(use_true_random=False))
def test_the_order_of_tiles_changes_no_more_than_the_last_bits(grid: TileGrid, chance: random.Random) -> None:
    """One order always gives the same bytes; another one rounds differently."""
    predictions = predict(grid)
    order = list(range(len(predictions)))
    chance.shuffle(order)
    mixed = TileGrid(grid.canvas, tuple(grid.tiles[index] for index in order))
    fused = fuse(grid, predictions)
    assert torch.equal(fused, fuse(grid, predictions))
    torch.testing.assert_close(fused, fuse(mixed, [predictions[index] for index in order]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(kind: torch.dtype) -> None:
    grid = TileGrid.lay(Plane(16, 16), tile_size=8, overlap=4)
    predictions = [each.to(kind) for each in predict(grid)]
    fused = fuse(grid, predictions)
    assert fused.dtype == torch.float32
    assert torch.equal(fused, fuse(grid, [each.float() for each in predictions]))


def test_a_mask_takes_a_tile_out_where_it_is_zero() -> None:
    canvas, tile = Plane(8, 8), Rectangle(0, 0, 8, 8)
    grid, mask = TileGrid(canvas, (tile, tile)), torch.zeros(8, 8)
    mask[:, 4:] = 1
    left, right = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    fused = fuse(grid, [left, right], [1 - mask, mask])
    assert torch.equal(fused[0], mask)


@given(grids(), st.sampled_from([0.25, 0.5, 4.0]))
def test_masks_of_one_weight_change_nothing(grid: TileGrid, weight: float) -> None:
    predictions = predict(grid)
    masks = [torch.full(each.shape[1:], weight) for each in predictions]
    assert torch.equal(fuse(grid, predictions, masks), fuse(grid, predictions))
