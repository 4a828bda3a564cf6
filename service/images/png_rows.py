"""Writes a PNG row by row, so that the picture need not be in memory as a whole."""

import struct
import zlib
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_UP: Final = 2  # the filter: each byte less the one above it (PNG specification, third edition, 9.2)
_LEVEL: Final = 1


class PngRows:
    """A PNG of 8 bits RGB, or with alpha too, which is whole after `finish`."""

    def __init__(self, target: IO[bytes], width_px: int, height_px: int, *, alpha: bool = False) -> None:
        self._target = target
        self._packer = zlib.compressobj(_LEVEL)
        self._above: NDArray[np.uint8] = np.zeros(width_px * (4 if alpha else 3), np.uint8)
        target.write(_SIGNATURE)
        self._write(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 6 if alpha else 2, 0, 0, 0))

    def add(self, strip: Image.Image) -> None:
        """The next rows, from the top down."""
        rows = np.asarray(strip).reshape(strip.height, -1)
        filtered = np.empty((strip.height, rows.shape[1] + 1), np.uint8)
        filtered[:, 0] = _UP
        filtered[0, 1:] = rows[0] - self._above
        filtered[1:, 1:] = rows[1:] - rows[:-1]
        self._above = rows[-1].copy()
        if packed := self._packer.compress(filtered.tobytes()):
            self._write(b"IDAT", packed)

    def finish(self) -> None:
        self._write(b"IDAT", self._packer.flush())
        self._write(b"IEND", b"")

    def _write(self, kind: bytes, body: bytes) -> None:
        checksum = zlib.crc32(body, zlib.crc32(kind))
        self._target.write(struct.pack(">I", len(body)) + kind)
        self._target.write(body)
        self._target.write(struct.pack(">I", checksum))
