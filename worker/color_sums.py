"""Colours of a picture and of its source, and the one affine map a channel that makes them alike."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from api_schemas.generation import BitDepth
from worker.colors import ColorFix

_CELLS = 64  # along the longer side of the low band: 128 px of an 8192 px picture
_STRIP = 64  # rows that are counted at a time: of 8192 px that takes 4 MB
_MOST_GAIN = 1.25  # of a stage's own contrast; more is no drift, but another picture
_FLAT = 1 / 255  # deviation of a low band that has next to no contrast
_HALVINGS = 40
Levels = npt.NDArray[np.uint8 | np.uint16]
Sums = npt.NDArray[np.int64]


def recolor(rows: Levels, colors: ColorFix, bit_depth: BitDepth) -> Levels:
    """Rows (h, W, 3) of that depth, corrected."""
    table = np.array(colors.tabulate(bit_depth)).reshape(-1, 3)
    return np.stack([table[rows[..., channel], channel] for channel in range(3)], axis=-1)


class ColorSums:
    """The colours of a picture that goes by in strips, as whole numbers: in whatever strips, they are the same.

    Args:
        size: (height, width), pixels.
    """

    def __init__(self, size: tuple[int, int], bit_depth: BitDepth) -> None:
        self._size = size
        self.bit_depth: BitDepth = bit_depth
        self._grid = _lay_grid(size)
        self.counts: Sums = np.zeros((3, 2**bit_depth), np.int64)
        self._cells: Sums = np.zeros((*self._grid, 3), np.int64)

    def add(self, top: int, rows: Levels) -> None:
        """Rows (h, W, 3) of the picture from `top` down, each once."""
        starts = _list_starts(self._size[1], self._grid[1])
        for first in range(0, len(rows), _STRIP):
            strip = rows[first : first + _STRIP]
            for channel in range(3):
                self.counts[channel] += np.bincount(strip[..., channel].ravel(), minlength=2**self.bit_depth)
            sums = np.add.reduceat(strip, starts, axis=1, dtype=np.int64)
            places = np.arange(top + first, top + first + len(strip)) * self._grid[0] // self._size[0]
            np.add.at(self._cells, places, sums)

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """Of each channel, in [0, 1]."""
        levels = np.linspace(0, 1, 2**self.bit_depth)
        return self.counts @ levels / self.counts.sum(1)

    @property
    def deviations(self) -> npt.NDArray[np.float64]:
        """Standard deviation of each channel's low band: of the means of about square cells."""
        down, across = (
            np.diff([*_list_starts(length, cells), length])
            for length, cells in zip(self._size, self._grid, strict=True)
        )
        means = self._cells / (down[:, None] * across)[..., None]
        return means.std((0, 1)) / (2**self.bit_depth - 1)


def count_colors(
    strips: Iterator[tuple[int, Levels]], size: tuple[int, int], bit_depth: BitDepth
) -> ColorSums:
    """Of a whole picture, from (top, rows) of all its strips."""
    sums = ColorSums(size, bit_depth)
    for top, rows in strips:
        sums.add(top, rows)
    return sums


def fit_colors(made: ColorSums, source: ColorSums) -> ColorFix:
    """What gives a picture its source's mean, and the contrast of its low band within a quarter of its own.

    The mean is that of the finished levels, rounded and cut off at black and white: it is within half a level.
    """
    own, wanted = made.deviations, source.deviations
    gains = np.where(own > _FLAT, np.clip(wanted / np.maximum(own, _FLAT), 1 / _MOST_GAIN, _MOST_GAIN), 1.0)
    offsets = _find_offsets(made, gains, source.means)
    return ColorFix(tuple(map(float, gains)), tuple(map(float, offsets)))


def _find_offsets(
    made: ColorSums, gains: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """By bisection: a larger offset never gives a darker picture."""
    low, high = np.full(3, -2.0), np.full(3, 2.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        darker = _mean_after(made, gains, middle) < wanted
        low, high = np.where(darker, middle, low), np.where(darker, high, middle)
    below, above = (np.abs(_mean_after(made, gains, each) - wanted) for each in (low, high))
    return np.where(below < above, low, high)


def _mean_after(
    made: ColorSums, gains: npt.NDArray[np.float64], offsets: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    table = _tabulate(gains, offsets, made.bit_depth)
    return (made.counts * table.T).sum(1) / made.counts.sum(1) / (2**made.bit_depth - 1)


def _tabulate(
    gains: npt.NDArray[np.float64], offsets: npt.NDArray[np.float64], bit_depth: BitDepth
) -> Levels:
    most = 2**bit_depth - 1
    levels = np.arange(most + 1)[:, None] * gains + offsets * most
    return np.rint(levels).clip(0, most).astype(np.uint8 if bit_depth == 8 else np.uint16)


def _lay_grid(size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of cells; a pixel at least each."""
    height, width = size
    cells = min(_CELLS, max(size))
    return max(round(height * cells / max(size)), 1), max(round(width * cells / max(size)), 1)


def _list_starts(length: int, cells: int) -> list[int]:
    """The first pixel of each cell along one axis: cell i has those with pixel * cells // length == i."""
    return [-(-cell * length // cells) for cell in range(cells)]
