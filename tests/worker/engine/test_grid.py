import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.canvas import Plane, Rectangle
from worker.engine.errors import GridError
from worker.engine.grid import TileGrid
from worker.engine.plan import DenoisePlan

sides = st.integers(4, 150)


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    tile_size = draw(st.integers(4, 40))
    return TileGrid.lay(
        Plane(draw(sides), draw(sides), draw(st.tuples(st.booleans(), st.booleans()))),
        tile_size=tile_size,
        overlap=draw(st.integers(0, tile_size * 3 // 4)),
        shift=draw(st.tuples(st.integers(0, 60), st.integers(0, 60))),
    )


@given(grids())
def test_every_pixel_is_covered_and_tiles_are_alike(grid: TileGrid) -> None:
    covered = torch.zeros(grid.canvas.size)
    for tile in grid.tiles:
        for outer, _ in grid.canvas.pieces(tile):
            outer.slice(covered).add_(1)
    assert covered.min() >= 1
    assert len({(tile.height, tile.width) for tile in grid.tiles}) == 1
    assert len(set(grid.tiles)) == len(grid.tiles)


@given(st.integers(64, 200), st.booleans(), st.integers(0, 50))
def test_neighbours_share_at_least_the_overlap(length: int, wraps: bool, shift: int) -> None:
    grid = TileGrid.lay(Plane(length, 32, (wraps, False)), tile_size=32, overlap=12, shift=(shift, 0))
    tops = sorted(tile.top for tile in grid.tiles)
    ends = [*tops[1:], tops[0] + length] if wraps else tops[1:]
    assert all(later - earlier <= 32 - 12 for earlier, later in zip(tops, ends, strict=False))


def test_a_wrapping_canvas_is_covered_exactly_once_without_overlap() -> None:
    grid = TileGrid.lay(Plane(256, 128, (True, True)), tile_size=64, shift=(17, 40))
    assert len(grid.tiles) == 4 * 2


def test_a_tile_cut_short_by_a_small_wrapping_canvas_shares_less() -> None:
    grid = TileGrid.lay(Plane(32, 128, (True, True)), tile_size=128, overlap=32)
    assert {tile.top for tile in grid.tiles} == {0, 16}
    assert {tile.left for tile in grid.tiles} == {0, 64}


def test_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(GridError, match="overlap 64 must be at least 0 and less than tile_size 64"):
        TileGrid.lay(Plane(128, 128), tile_size=64, overlap=64)


def test_moving_grid_never_puts_a_border_twice_on_a_line() -> None:
    plan = DenoisePlan(Plane(256, 256, (True, True)), 64, 0, 0, moving=True, seed=5)
    lines = [{tile.top for tile in plan.grid_at(index, 8).tiles} for index in range(8)]
    assert all(not first & second for first in lines for second in lines if first is not second)


def test_the_axes_take_turns_where_the_canvas_ends() -> None:
    """Where a shift happens to be none there are four and four tiles."""
    plan = DenoisePlan(Plane(256, 256), 64, 0, 0, moving=True, seed=5)
    rows, columns = zip(*(_count_rows_and_columns(plan, index) for index in range(8)), strict=True)
    assert (rows, columns) == ((4, 4, 5, 4, 5, 4, 5, 4), (4, 5, 4, 5, 4, 5, 4, 5))


@pytest.mark.parametrize("wrap", [(False, False), (True, True), (True, False)])
def test_outer_steps_take_no_tile_more_than_their_overlap_needs(wrap: tuple[bool, bool]) -> None:
    """Two tiles a side, and a quarter shared: three. Shifted, there would be four where the canvas ends."""
    plan = DenoisePlan(Plane(128, 128, wrap), 64, 0, 16, moving=True, seed=5, outer_shares=(0, 0.2))
    last = [plan.grid_at(index, 10).tiles for index in (8, 9)]
    assert [len(grid) for grid in last] == [9, 9]
    tops, lefts = ([{getattr(tile, side) for tile in grid} for grid in last] for side in ("top", "left"))
    assert (tops[0] != tops[1], lefts[0] != lefts[1]) == wrap  # along what wraps, borders still move


def _count_rows_and_columns(plan: DenoisePlan, index: int) -> tuple[int, int]:
    tiles = plan.grid_at(index, 8).tiles
    return len({tile.top for tile in tiles}), len({tile.left for tile in tiles})


def test_a_wrapping_crop_goes_on_at_the_other_side() -> None:
    canvas = torch.arange(20.0).reshape(1, 4, 5)
    crop = Plane(4, 5, (True, True)).gather(canvas, Rectangle(3, 4, 2, 3))
    assert crop.tolist() == [[[19, 15, 16], [4, 0, 1]]]
