"""The finished rows on disk: memory does not grow with the picture."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import tifffile

from worker.engine.plan import BitDepth


class ImageFile:
    """A BigTIFF, RGB, uint8 or uint16, that is filled from the top.

    tifffile makes the header; rows are plain writes at their offset, not a memory map, whose touched
    pages would count as this process' memory.
    """

    def __init__(self, path: Path, height: int, width: int, bit_depth: BitDepth = 8) -> None:
        self._row_bytes = width * 3 * bit_depth // 8
        self._offset = _lay_out(path, height, width, bit_depth)
        self._file = os.open(path, os.O_WRONLY)

    def write(self, top: int, rows: np.ndarray) -> None:
        """Write rows (h, W, 3) from row `top` down."""
        view = memoryview(rows.tobytes())
        position = self._offset + top * self._row_bytes
        while view:
            written = os.pwrite(self._file, view, position)
            position, view = position + written, view[written:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _lay_out(path: Path, height: int, width: int, bit_depth: BitDepth) -> int:
    path.unlink(missing_ok=True)
    pixels = tifffile.memmap(
        path, shape=(height, width, 3), dtype=f"uint{bit_depth}", photometric="rgb", bigtiff=True
    )
    return int(pixels.offset)
