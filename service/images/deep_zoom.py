"""Deep Zoom tiles of an unfinished picture, assembled from its stored previews."""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from math import ceil
from typing import Final, cast

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from anyio import to_thread
from numpy.typing import NDArray
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.events import TilePreviewedData
from api_schemas.layout import PREVIEW_CELL_PX
from api_schemas.preview_frames import unpack_preview
from api_schemas.pyramid import Window
from api_schemas.wire import previews_key
from service.unreadable import UnreadableRecords, require_wrong_type

_BACKGROUND: Final = 40
_QUALITY: Final = 80
_PAGE: Final = 256
_FRESH_S: Final = 0.5  # a tile far out shows all previews of a canvas, which change with each step
_KEPT_TILES: Final = 64
Pixels = NDArray[np.uint8]


class PreviewCanvas:
    """Reads the newest frame of each cell that a window touches; twice a second, however many ask."""

    def __init__(self, redis: Redis, unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self._unreadable = unreadable
        self._tiles: OrderedDict[tuple[str, Window], tuple[float, asyncio.Task[bytes]]] = OrderedDict()

    async def render(self, job_id: str, window: Window) -> bytes:
        """The window as JPEG; parts without a preview are grey."""
        key, now = (job_id, window), time.monotonic()
        began, task = self._tiles.get(key, (0.0, None))
        if task is None or (task.done() and now - began > _FRESH_S):
            task = asyncio.create_task(self._render(job_id, window))
            self._tiles[key] = now, task
            self._tiles.move_to_end(key)
            if len(self._tiles) > _KEPT_TILES:
                self._tiles.popitem(last=False)
        return await asyncio.shield(task)  # others wait for it too

    async def draw(self, job_id: str, window: Window) -> Pixels | None:
        """The window as RGB (height, width, 3); None without any preview."""
        keys = await self._find_cells(job_id, window)
        return await self._compose(job_id, window, keys) if keys else None

    async def _render(self, job_id: str, window: Window) -> bytes:
        keys = await self._find_cells(job_id, window)
        return await to_thread.run_sync(_encode, await self._compose(job_id, window, keys))

    async def _compose(self, job_id: str, window: Window, keys: Sequence[str]) -> Pixels:
        tile = np.full((window.height, window.width, 3), _BACKGROUND, np.uint8)
        for start in range(0, len(keys), _PAGE):
            frames = await cast(
                Awaitable[list[bytes | None]],
                self._redis.hmget(previews_key(job_id), keys[start : start + _PAGE]),
            )
            await to_thread.run_sync(self._paint_all, tile, window, [frame for frame in frames if frame])
        return tile

    async def _find_cells(self, job_id: str, window: Window) -> list[str]:
        try:
            keys = await cast(Awaitable[list[bytes]], self._redis.hkeys(previews_key(job_id)))
        except RedisError as error:
            require_wrong_type(error)
            self._unreadable.tell("preview", job_id, error)
            return []
        return [key.decode() for key in keys if _may_touch(key, window)]

    def _paint_all(self, tile: Pixels, window: Window, frames: Iterable[bytes]) -> None:
        for frame in frames:
            try:
                event, image = unpack_preview(frame)
                pixels = _decode(image, window, event.data)
            except ValueError as error:
                self._unreadable.tell("preview", frame[:100], error)
                continue
            _paint(tile, window, event.data, pixels)


_PLACE: Final = re.compile(rb"([0-9]{1,6}),([0-9]{1,6})")


def _may_touch(key: bytes, window: Window) -> bool:
    place = _PLACE.fullmatch(key)
    if place is None:
        return False
    left_px, top_px = int(place[1]), int(place[2])
    return (
        window.left_px - PREVIEW_CELL_PX < left_px < window.right_px
        and window.top_px - PREVIEW_CELL_PX < top_px < window.bottom_px
    )


def _decode(image: bytes, window: Window, cell: TilePreviewedData) -> Pixels:
    """Pixels of a preview, but not many more than the tile has for it: an eighth costs a third."""
    height = ceil(cell.height_px * window.height / (window.bottom_px - window.top_px))
    width = ceil(cell.width_px * window.width / (window.right_px - window.left_px))
    return simplejpeg.decode_jpeg(image, colorspace="RGB", min_height=height, min_width=width, min_factor=1.0)


def _paint(tile: Pixels, window: Window, cell: TilePreviewedData, pixels: Pixels) -> None:
    """For each pixel of the tile inside the cell, take the cell's pixel under its centre."""
    rows, from_rows = _match(
        window.top_px, window.bottom_px, window.height, cell.top_px, cell.height_px, pixels.shape[0]
    )
    columns, from_columns = _match(
        window.left_px, window.right_px, window.width, cell.left_px, cell.width_px, pixels.shape[1]
    )
    if len(from_rows) and len(from_columns):
        tile[rows, columns] = pixels[from_rows[:, None], from_columns[None, :]]


def _match(
    start_px: int, end_px: int, length: int, cell_start_px: int, cell_px: int, cell_length: int
) -> tuple[slice, NDArray[np.intp]]:
    """Which of the tile's pixels on one axis lie in the cell, and the cell's index for each."""
    centres = start_px + (np.arange(length) + 0.5) * ((end_px - start_px) / length)
    inside = np.flatnonzero((centres >= cell_start_px) & (centres < cell_start_px + cell_px))
    if not len(inside):
        return slice(0, 0), inside
    places = ((centres[inside] - cell_start_px) * (cell_length / cell_px)).astype(np.intp)
    return slice(int(inside[0]), int(inside[-1]) + 1), places


def _encode(tile: Pixels) -> bytes:
    return simplejpeg.encode_jpeg(tile, quality=_QUALITY, colorspace="RGB")
