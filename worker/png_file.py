"""A PNG that several cores compress.

Strips of rows are compressed apart, as pigz does, and are as long whatever the number of cores: the same pixels are the
same file. Source: Portable Network Graphics (PNG) Specification, third edition: filters in section 9, the zlib stream in
10, chunks in 11; RFC 1951, 3.2.3: a block may be empty, and the last one says so.
"""

import os
import struct
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import pyvips
from isal import isal_zlib
from PIL.PngImagePlugin import putchunk

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {3: 2, 4: 6}  # by bands: RGB, RGBA
_SUB = b"\1"  # the filter of a row: each byte less that of the pixel to the left
_LEVEL = 2
_STRIP_BYTES = 1 << 20
_ZLIB_HEADER, _LAST_BLOCK = b"\x78\x01", b"\x03\x00"
_M_PER_INCH, _PER_M = 0.0254, 1
_MOST_THREADS = 8


def write_png(image: pyvips.Image, path: Path, dpi: int, profile: bytes, chunks: bytes) -> None:
    """Write RGB or RGBA of 8 or 16 bits.

    Args:
        profile: ICC, of the pixels.
        chunks: others that stand before the pixels.

    Raises:
        OSError: the file cannot be written.
        pyvips.Error: the pixels cannot be computed.
    """
    bits = 8 if image.format == "uchar" else 16
    with path.open("wb") as file:
        file.write(_SIGNATURE)
        header = image.width, image.height, bits, _COLOR_TYPES[image.bands], 0, 0, 0
        putchunk(file, b"IHDR", struct.pack(">2I5B", *header))
        putchunk(file, b"iCCP", b"sRGB\0\0", zlib.compress(profile))
        putchunk(file, b"pHYs", struct.pack(">2IB", *[round(dpi / _M_PER_INCH)] * 2, _PER_M))
        file.write(chunks)
        with _Pixels(file, image.width * image.bands * bits // 8) as pixels:
            pixels.write_all(_filter(image))
        putchunk(file, b"IEND", b"")


def _filter(image: pyvips.Image) -> pyvips.Image:
    """Rows of bytes, filtered; of 16 bits the higher byte comes first."""
    if image.format != "uchar":
        image = image.byteswap().copy(format="uchar", bands=2 * image.bands)
    left = image.embed(1, 0, image.width, image.height)
    return ((image - left) & 255).cast("uchar")


class _Pixels:
    """The chunks of a file that hold the pixels, compressed by threads of its own until the end of the block.

    Args:
        row_bytes: of a row without its filter.
    """

    def __init__(self, file: BinaryIO, row_bytes: int) -> None:
        self._file, self._row_bytes = file, row_bytes
        self._strip_bytes = max(_STRIP_BYTES // row_bytes, 1) * row_bytes
        self._rest, self._checksum = bytearray(), zlib.adler32(b"")
        self._threads = min(os.cpu_count() or 1, _MOST_THREADS)
        self._pool, self._waiting = ThreadPoolExecutor(self._threads), deque[Future[tuple[bytes, bytes]]]()
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write_all(self, rows: pyvips.Image) -> None:
        """libvips computes the rows by its own threads, and hands them over from the top."""
        putchunk(self._file, b"IDAT", _ZLIB_HEADER)
        target = pyvips.TargetCustom()
        target.on_write(self._take)
        try:
            rows.write_to_target(target, ".raw")
        except pyvips.Error as error:
            raise self._error or error from None
        self._end()

    def _take(self, data: bytes | bytearray | memoryview) -> int:
        """libvips swallows exceptions, so the first is kept."""
        self._rest += data
        try:
            while len(self._rest) >= self._strip_bytes:
                self._begin(bytes(self._rest[: self._strip_bytes]))
                del self._rest[: self._strip_bytes]
        except OSError as error:
            self._error = error
            return -1
        return len(data)

    def _end(self) -> None:
        if self._rest:
            self._begin(bytes(self._rest))
        while self._waiting:
            self._write_next()
        putchunk(self._file, b"IDAT", _LAST_BLOCK + struct.pack(">I", self._checksum))

    def _begin(self, strip: bytes) -> None:
        self._waiting.append(self._pool.submit(self._compress, strip))
        if len(self._waiting) > 2 * self._threads:
            self._write_next()

    def _write_next(self) -> None:
        rows, compressed = self._waiting.popleft().result()
        self._checksum = zlib.adler32(rows, self._checksum)
        putchunk(self._file, b"IDAT", compressed)

    def _compress(self, strip: bytes) -> tuple[bytes, bytes]:
        """Whole rows, each with the name of its filter, and the same compressed."""
        starts = range(0, len(strip), self._row_bytes)
        rows = b"".join(_SUB + strip[start : start + self._row_bytes] for start in starts)
        return rows, _deflate(rows)


def _deflate(data: bytes) -> bytes:
    """Blocks of which none says that it is the last, and which end with a whole byte."""
    stream = isal_zlib.compressobj(_LEVEL, wbits=-isal_zlib.MAX_WBITS)  # pyright: ignore[reportUnknownMemberType]
    return stream.compress(data) + stream.flush(isal_zlib.Z_SYNC_FLUSH)  # pyright: ignore[reportUnknownMemberType]
