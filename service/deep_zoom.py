"""Geometry of a Deep Zoom pyramid: level n halves level n + 1, the last level is the picture itself."""

from dataclasses import dataclass
from math import ceil
from typing import Final

TILE_PX: Final = 510
OVERLAP_PX: Final = 1
_DESCRIPTOR: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" Overlap="{overlap}" '
    'TileSize="{tile}"><Size Width="{width}" Height="{height}"/></Image>\n'
)


@dataclass(frozen=True, slots=True)
class Window:
    """The part of the canvas under one pyramid tile, and how many pixels the tile has for it."""

    left_px: int
    top_px: int
    right_px: int
    bottom_px: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Pyramid:
    """All tiles of a picture of `width_px` x `height_px`."""

    width_px: int
    height_px: int

    @property
    def last_level(self) -> int:
        return (max(self.width_px, self.height_px) - 1).bit_length()

    def describe(self) -> str:
        """The .dzi file."""
        return _DESCRIPTOR.format(
            overlap=OVERLAP_PX, tile=TILE_PX, width=self.width_px, height=self.height_px
        )

    def window(self, level: int, column: int, row: int) -> Window | None:
        """What tile (level, column, row) shows; None if there is no such tile."""
        if not 0 <= level <= self.last_level:
            return None
        scale = 2 ** (self.last_level - level)
        across = _span(column, ceil(self.width_px / scale))
        down = _span(row, ceil(self.height_px / scale))
        if across is None or down is None:
            return None
        return Window(
            left_px=across[0] * scale,
            top_px=down[0] * scale,
            right_px=min(across[1] * scale, self.width_px),
            bottom_px=min(down[1] * scale, self.height_px),
            width=across[1] - across[0],
            height=down[1] - down[0],
        )


def _span(index: int, length: int) -> tuple[int, int] | None:
    if index < 0 or index * TILE_PX >= length:
        return None
    return max(0, index * TILE_PX - OVERLAP_PX), min((index + 1) * TILE_PX + OVERLAP_PX, length)
