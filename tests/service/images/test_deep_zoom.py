"""Pyramid geometry: against libvips' own Deep Zoom, and as a property."""

from itertools import pairwise
from pathlib import Path

import pytest
import pyvips
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from service.images.deep_zoom import Pyramid

sides = st.integers(256, 16_384)


@given(sides, sides, st.data())
def test_the_tiles_of_a_level_cover_the_canvas_and_no_more(
    width: int, height: int, data: st.DataObject
) -> None:
    pyramid = Pyramid(width, height)
    level = data.draw(st.integers(0, pyramid.last_level))
    columns = [column for column in range(40) if pyramid.window(level, column, 0)]
    windows = [pyramid.window(level, column, 0) for column in columns]
    assert columns == list(range(len(columns)))
    assert windows[0].left_px == 0
    assert windows[-1].right_px == width
    for left, right in pairwise(windows):
        assert right.left_px < left.right_px  # they share two pixels of the level
    assert pyramid.window(pyramid.last_level + 1, 0, 0) is None
    assert pyramid.window(level, -1, 0) is None


@pytest.mark.parametrize(("width", "height"), [(1100, 700), (512, 512), (256, 2048)])
def test_every_tile_that_libvips_cuts_has_our_size(tmp_path: Path, width: int, height: int) -> None:
    picture = pyvips.Image.black(width, height, bands=3)
    picture.dzsave(str(tmp_path / "image"), tile_size=510, overlap=1, suffix=".jpg")
    pyramid = Pyramid(width, height)
    cut = sorted((tmp_path / "image_files").rglob("*.jpg"))
    assert cut
    for path in cut:
        column, row = map(int, path.stem.split("_"))
        window = pyramid.window(int(path.parent.name), column, row)
        tile_height, tile_width = simplejpeg.decode_jpeg_header(path.read_bytes())[:2]
        assert (window.height, window.width) == (tile_height, tile_width)
    descriptor = (tmp_path / "image.dzi").read_text()
    for part in (f'Width="{width}"', f'Height="{height}"', 'TileSize="510"', 'Overlap="1"', 'Format="jpg"'):
        assert part in descriptor
        assert part in pyramid.describe()
