"""A PNG from its pixels, top to bottom, compressed by several cores.

Strips of rows are compressed apart, as pigz does, and are as long whatever the number of cores: the same pixels are the
same file. Source: Portable Network Graphics (PNG) Specification, third edition: filters in section 9, the zlib stream in
10, chunks in 11; RFC 1951, 3.2.3: a block may be empty, and the last one says so.
"""

import os
import struct
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, Self

import numpy as np
from isal import isal_zlib
from PIL.PngImagePlugin import putchunk

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {3: 2, 4: 6}  # by bands: RGB, RGBA
_SUB = 1  # the filter: each byte less that of the pixel to the left
_LEVEL = 2
_STRIP_BYTES = 1 << 20
_M_PER_INCH, _PER_M = 0.0254, 1
_ZLIB_HEADER, _LAST_BLOCK = b"\x78\x01", b"\x03\x00"
_MOST_THREADS = 8


class PngFile:
    """Takes rows in pieces of any length; `close` ends the file, the block ends its threads.

    Args:
        shape: (height, width, bands), of 3 bands for RGB or 4 for RGBA.
        bits: a channel, 8 or 16; of 16 the higher byte comes first.
        profile: ICC, of the pixels.
        chunks: others that stand before the pixels.
    """

    def __init__(
        self, file: BinaryIO, shape: tuple[int, int, int], bits: int, dpi: int, profile: bytes, chunks: bytes
    ) -> None:
        height, width, bands = shape
        self._file, self._rest, self._checksum = file, bytearray(), zlib.adler32(b"")
        self._pixel_bytes = bands * bits // 8
        self._row_bytes = width * self._pixel_bytes
        self._strip_bytes = max(_STRIP_BYTES // self._row_bytes, 1) * self._row_bytes
        self._threads = min(os.cpu_count() or 1, _MOST_THREADS)
        self._pool, self._waiting = ThreadPoolExecutor(self._threads), deque[Future[tuple[bytes, bytes]]]()
        file.write(_SIGNATURE)
        putchunk(file, b"IHDR", struct.pack(">2I5B", width, height, bits, _COLOR_TYPES[bands], 0, 0, 0))
        putchunk(file, b"iCCP", b"sRGB\0\0", zlib.compress(profile))
        putchunk(file, b"pHYs", struct.pack(">2IB", *[round(dpi / _M_PER_INCH)] * 2, _PER_M))
        file.write(chunks)
        putchunk(file, b"IDAT", _ZLIB_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._rest += data
        while len(self._rest) >= self._strip_bytes:
            self._begin(bytes(self._rest[: self._strip_bytes]))
            del self._rest[: self._strip_bytes]

    def close(self) -> None:
        """Write what is left, and the end."""
        if self._rest:
            self._begin(bytes(self._rest))
        while self._waiting:
            self._write_next()
        putchunk(self._file, b"IDAT", _LAST_BLOCK + struct.pack(">I", self._checksum))
        putchunk(self._file, b"IEND", b"")

    def _begin(self, strip: bytes) -> None:
        self._waiting.append(self._pool.submit(self._compress, strip))
        if len(self._waiting) > 2 * self._threads:
            self._write_next()

    def _write_next(self) -> None:
        filtered, compressed = self._waiting.popleft().result()
        self._checksum = zlib.adler32(filtered, self._checksum)
        putchunk(self._file, b"IDAT", compressed)

    def _compress(self, strip: bytes) -> tuple[bytes, bytes]:
        """Whole rows as (filtered, compressed)."""
        rows = np.frombuffer(strip, np.uint8).reshape(-1, self._row_bytes)
        filtered = np.empty((len(rows), 1 + self._row_bytes), np.uint8)
        filtered[:, 0] = _SUB
        first = self._pixel_bytes
        filtered[:, 1 : 1 + first] = rows[:, :first]
        np.subtract(rows[:, first:], rows[:, :-first], out=filtered[:, 1 + first :])
        given = filtered.tobytes()
        return given, _deflate(given)


def _deflate(data: bytes) -> bytes:
    """Blocks of which none says that it is the last, and which end with a whole byte."""
    stream = isal_zlib.compressobj(_LEVEL, wbits=-isal_zlib.MAX_WBITS)  # pyright: ignore[reportUnknownMemberType]
    return stream.compress(data) + stream.flush(isal_zlib.Z_SYNC_FLUSH)  # pyright: ignore[reportUnknownMemberType]
