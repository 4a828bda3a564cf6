"""Pyramid geometry: against libvips' own Deep Zoom, and as a property; and tiles of a running job."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
import pyvips
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.pyramid import Pyramid
from service.images.deep_zoom import PreviewCanvas
from service.metrics import Metrics
from service.unreadable import UnreadableRecords
from tests.story import Story

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


def test_a_tile_far_out_shows_every_cell_in_its_place(valkey: str, redis: Redis) -> None:
    """Cells as large as an eighth of the tile down to less than a pixel of it."""
    story, levels = Story(redis), {}
    for column in range(8):
        for row in range(8):
            levels[column, row] = 30 + 25 * column + 3 * row
            story.preview("8" * 28, 512 * column, 512 * row, level=levels[column, row])

    async def render() -> dict[int, bytes]:
        async with AsyncRedis.from_url(valkey) as client:
            canvas, pyramid = PreviewCanvas(client, UnreadableRecords(Metrics())), Pyramid(4096, 4096)
            return {level: await canvas.render("8" * 28, pyramid.window(level, 0, 0)) for level in range(10)}

    for level, tile in asyncio.run(render()).items():
        pixels = simplejpeg.decode_jpeg(tile)[..., 0].astype(int)
        side = 2**level
        assert pixels.shape == (min(side, 511), min(side, 511))
        for (column, row), expected in levels.items():
            middle = tuple(int((512 * index + 256) * side / 4096) for index in (row, column))
            if side >= 64 and max(middle) < 500:  # else the tile's own JPEG mixes cells
                assert abs(pixels[middle] - expected) < 6


def test_one_tile_is_rendered_once_for_all_who_ask_at_a_time(valkey: str, redis: Redis) -> None:
    Story(redis).preview("9" * 28, 0, 0, level=99)
    redis.config_resetstat()

    async def ask() -> set[bytes]:
        async with AsyncRedis.from_url(valkey) as client:
            canvas, window = (
                PreviewCanvas(client, UnreadableRecords(Metrics())),
                Pyramid(4096, 4096).window(0, 0, 0),
            )
            tiles = await asyncio.gather(*(canvas.render("9" * 28, window) for _ in range(50)))
            await canvas.render("0" * 28, window)  # another job
            return set(tiles)

    assert len(asyncio.run(ask())) == 1
    assert redis.info("commandstats")["cmdstat_hkeys"]["calls"] == 2
