"""Cells of the preview canvas."""

import numpy as np
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.adapters.preview_map import PreviewMap
from worker.engine.canvas import Plane, Rectangle
from worker.engine.grid import TileGrid
from worker.process.previews import PreviewCanvas
from worker.process.protocol import PreviewCell

SCALE = 8
GREY = PreviewMap(torch.full((3, 1), 1.0), torch.zeros(3))  # a latent of one channel is its grey level
EVERYTHING = 1 << 30

sides = st.integers(4, 200)


def canvas_of(height: int, width: int, shown: tuple[int, int] | None = None) -> PreviewCanvas:
    return PreviewCanvas(height, width, SCALE, GREY, shown)


def assemble(cells: tuple[PreviewCell, ...], height: int, width: int) -> np.ndarray:
    """What a viewer sees, at latent resolution; -1 where nothing was shown."""
    seen = np.full((height, width), -1)
    for cell in cells:
        data, pixels = cell.data, simplejpeg.decode_jpeg(cell.jpeg)[:, :, 0]
        top, left = data.top_px // SCALE, data.left_px // SCALE
        rows, columns = data.height_px // SCALE, data.width_px // SCALE
        step = max(pixels.shape[0] // rows, 1)
        seen[top : top + rows, left : left + columns] = pixels[::step, ::step]
    return seen


@given(sides, sides, st.integers(0, 199), st.integers(0, 199))
@settings(max_examples=25, deadline=None)
def test_painted_tiles_are_seen_where_they_lie(height: int, width: int, down: int, right: int) -> None:
    """Also where they wrap."""
    canvas = canvas_of(height, width)
    wanted = torch.linspace(0.2, 0.8, width).repeat(height, 1)[None]
    grid = TileGrid.lay(Plane(height, width, (True, True)), tile_size=64, shift=(down, right))
    for tile in grid.tiles:
        canvas.paint(tile, grid.canvas.gather(wanted, tile), 1)
    seen = assemble(canvas.take(EVERYTHING), height, width)
    assert np.abs(seen - (wanted[0] * 255).numpy()).max() < 12


@given(sides, sides)
@settings(max_examples=25, deadline=None)
def test_cells_cover_the_picture_once(height: int, width: int) -> None:
    canvas = canvas_of(height, width)
    canvas.paint(Rectangle(0, 0, height, width), torch.zeros(1, height, width), 1)
    covered = np.zeros((height * SCALE, width * SCALE), int)
    for cell in canvas.take(EVERYTHING):
        assert cell.data.left_px % 512 == cell.data.top_px % 512 == 0
        covered[
            cell.data.top_px : cell.data.top_px + cell.data.height_px,
            cell.data.left_px : cell.data.left_px + cell.data.width_px,
        ] += 1
    assert (covered == 1).all()


@given(sides, sides, st.integers(1, 80))
@settings(max_examples=25, deadline=None)
def test_finished_rows_replace_estimates(height: int, width: int, band: int) -> None:
    canvas = canvas_of(height, width)
    canvas.paint(Rectangle(0, 0, height, width), torch.zeros(1, height, width), 1)
    rows = np.full((height * SCALE, width * SCALE, 3), 200, np.uint8)
    for top in range(0, height * SCALE, band * SCALE):
        canvas.paint_rows(top, rows[top : top + band * SCALE])
    cells = canvas.take(EVERYTHING)
    assert {cell.data.phase for cell in cells} == {"decode"}
    assert np.abs(assemble(cells, height, width) - 200).max() < 4


@given(sides, sides, st.integers(0, 63), st.integers(0, 63), st.booleans())
@settings(max_examples=40, deadline=None)
def test_cells_end_where_the_picture_does(
    height: int, width: int, below: int, beside: int, decoded: bool
) -> None:
    """And have a pixel for each of its latent pixels, or for two by two of its own, whole or not."""
    shown = max(height * SCALE - below, 1), max(width * SCALE - beside, 1)
    canvas = canvas_of(height, width, shown)
    if decoded:
        for top in range(0, shown[0], 64):
            canvas.paint_rows(top, np.zeros((min(64, shown[0] - top), shown[1], 3), np.uint8))
    else:
        canvas.paint(Rectangle(0, 0, height, width), torch.zeros(1, height, width), 1)
    covered, per_pixel = np.zeros(shown, int), 2 if decoded else SCALE
    for cell in canvas.take(EVERYTHING):
        assert cell.data.phase == ("decode" if decoded else "denoise")
        bottom, right = cell.data.top_px + cell.data.height_px, cell.data.left_px + cell.data.width_px
        assert (bottom <= shown[0], right <= shown[1]) == (True, True)
        covered[cell.data.top_px : bottom, cell.data.left_px : right] += 1
        pixels = simplejpeg.decode_jpeg(cell.jpeg)
        assert pixels.shape[:2] == (-(-cell.data.height_px // per_pixel), -(-cell.data.width_px // per_pixel))
    assert (covered == 1).all()


def test_only_changes_are_taken_and_each_once() -> None:
    canvas = canvas_of(128, 128)
    canvas.paint(Rectangle(0, 0, 128, 128), torch.zeros(1, 128, 128), 1)
    assert len(canvas.take(EVERYTHING)) == 4
    assert canvas.take(EVERYTHING) == ()
    canvas.paint(Rectangle(70, 70, 10, 10), torch.ones(1, 10, 10), 2)
    (cell,) = canvas.take(EVERYTHING)
    assert (cell.data.top_px, cell.data.left_px, cell.data.step) == (512, 512, 2)


def test_no_cell_starves_when_all_change_faster_than_they_are_taken() -> None:
    canvas = canvas_of(256, 256)
    taken: set[tuple[int, int]] = set()
    for step in range(16):
        canvas.paint(Rectangle(0, 0, 256, 256), torch.zeros(1, 256, 256), step)
        (cell,) = canvas.take(1)
        taken.add((cell.data.top_px, cell.data.left_px))
    assert len(taken) == 16


@given(st.integers(60, 200), st.integers(60, 200), st.sampled_from([0.25, 0.5, 0.7]))
@settings(max_examples=25, deadline=None)
def test_smaller_canvases_are_seen_at_the_pictures_own_size(height: int, width: int, share: float) -> None:
    """Cells are the same ones; what the next canvas has not painted yet stays as the last one left it."""
    canvas = canvas_of(height, width)
    rows, columns = int(height * share), int(width * share)
    canvas.resize(rows, columns)
    canvas.paint(Rectangle(0, 0, rows, columns), torch.linspace(0.2, 0.8, columns).repeat(rows, 1)[None], 1)
    wanted = torch.linspace(0.2, 0.8, width).numpy() * 255
    seen = assemble(canvas.take(EVERYTHING), height, width)
    assert np.abs(seen[:, 8:-8] - wanted[8:-8]).max() < 16
    canvas.resize(height, width)
    canvas.paint(Rectangle(height - 1, width - 1, 1, 1), torch.ones(1, 1, 1), 2)
    (cell,) = canvas.take(EVERYTHING)
    left = assemble((cell,), height, width)[cell.data.top_px // SCALE, cell.data.left_px // SCALE :]
    assert np.abs(left[8:-12] - wanted[cell.data.left_px // SCALE :][8:-12]).max(initial=0) < 16
