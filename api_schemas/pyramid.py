"""The geometry of a Deep Zoom pyramid: which part of the picture each of its tiles shows."""

from dataclasses import dataclass
from math import ceil
from typing import Final

from api_schemas.layout import PYRAMID_OVERLAP_PX, PYRAMID_TILE_PX

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

    def touches(self, part: tuple[int, int, int, int]) -> bool:
        """Whether it shows anything of (left, top, right, bottom), pixels."""
        left_px, top_px, right_px, bottom_px = part
        across = self.left_px < right_px and left_px < self.right_px
        return across and self.top_px < bottom_px and top_px < self.bottom_px


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
            overlap=PYRAMID_OVERLAP_PX, tile=PYRAMID_TILE_PX, width=self.width_px, height=self.height_px
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
    if index < 0 or index * PYRAMID_TILE_PX >= length:
        return None
    return max(0, index * PYRAMID_TILE_PX - PYRAMID_OVERLAP_PX), min(
        (index + 1) * PYRAMID_TILE_PX + PYRAMID_OVERLAP_PX, length
    )
