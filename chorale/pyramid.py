"""A Deep Zoom picture: one descriptor and a folder of tiles for each halving of the size."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from xml.etree import ElementTree

from chorale.errors import UnexpectedAnswerError

_AT_ONCE = 8
_NAMESPACE = "{http://schemas.microsoft.com/deepzoom/2008}"


@dataclass(frozen=True, slots=True)
class PyramidTile:
    """Place of one tile; level 0 is a single pixel."""

    level: int
    column: int
    row: int


@dataclass(frozen=True, slots=True)
class Pyramid:
    """Content of a Deep Zoom descriptor."""

    width_px: int
    height_px: int
    tile_size_px: int
    image_format: str
    descriptor: bytes

    @classmethod
    def parse(cls, descriptor: bytes) -> "Pyramid":
        """
        Raises:
            UnexpectedAnswerError: this is no Deep Zoom descriptor.
        """
        try:
            image = ElementTree.fromstring(descriptor)
            size = image.find(f"{_NAMESPACE}Size")
            if size is None:
                raise KeyError("Size")
            return cls(
                width_px=int(size.attrib["Width"]),
                height_px=int(size.attrib["Height"]),
                tile_size_px=int(image.attrib["TileSize"]),
                image_format=image.attrib["Format"],
                descriptor=descriptor,
            )
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise UnexpectedAnswerError(f"no Deep Zoom descriptor: {error}") from error

    def tiles(self) -> Iterator[PyramidTile]:
        """All tiles, smallest level first."""
        top_level = (max(self.width_px, self.height_px) - 1).bit_length()
        for level in range(top_level + 1):
            shrink = 2 ** (top_level - level)
            columns = ceil(ceil(self.width_px / shrink) / self.tile_size_px)
            rows = ceil(ceil(self.height_px / shrink) / self.tile_size_px)
            yield from (PyramidTile(level, column, row) for row in range(rows) for column in range(columns))

    def write_tile(self, descriptor_path: Path, tile: PyramidTile, image: bytes) -> None:
        """Write a tile to the path that viewers expect."""
        place = self.place(descriptor_path, tile)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image)

    def write_descriptor(self, path: Path) -> Path:
        """Write the descriptor last: if it exists, all tiles do."""
        path.write_bytes(self.descriptor)
        return path

    def place(self, descriptor_path: Path, tile: PyramidTile) -> Path:
        """Path that viewers expect for a tile: `lava.dzi` has its tiles in `lava_files/`."""
        folder = descriptor_path.with_name(f"{descriptor_path.stem}_files") / str(tile.level)
        return folder / f"{tile.column}_{tile.row}.{self.image_format}"


async def async_for_each(
    fetch: Callable[[PyramidTile], Awaitable[None]], tiles: Iterable[PyramidTile]
) -> None:
    """Call for every tile, several at once; the first failure ends all."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def fetch_one(tile: PyramidTile) -> None:
        async with places:
            await fetch(tile)

    tasks = [asyncio.create_task(fetch_one(tile)) for tile in tiles]
    try:
        await asyncio.gather(*tasks)  # a task group would raise the failure inside a group of one
    finally:
        for task in tasks:
            task.cancel()


def for_each(fetch: Callable[[PyramidTile], None], tiles: Iterable[PyramidTile]) -> None:
    """The same for a function that blocks."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(fetch, tiles):
            pass
