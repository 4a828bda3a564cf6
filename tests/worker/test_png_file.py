"""PNG files that several threads compress, as zlib, Pillow and libvips read them."""

import os
import threading
import zlib
from errno import ENOSPC
from io import BytesIO

import numpy as np
import pytest
import pyvips
from PIL import Image

from worker import png_file
from worker.png_file import PngFile

PROFILE = b"profile"


def write(pixels: np.ndarray, pieces: int) -> bytes:
    """Handed over in so many pieces, which end in the middle of rows."""
    file, data = BytesIO(), pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    length = -(-len(data) // pieces)
    with PngFile(file, pixels.shape, 8 * pixels.itemsize, 300, PROFILE, b"") as png:
        for start in range(0, len(data), length):
            png.write(data[start : start + length])
        png.close()
    return file.getvalue()


def draw(height: int, width: int, bands: int, bits: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 2 ** (bits - 6), (height, width, bands))
    return (np.abs(np.cumsum(noise, axis=1)) % 2**bits).astype(f"uint{bits}")


def read_stream(png: bytes) -> bytes:
    """What is in the IDAT chunks; each chunk's length, kind, content and checksum follow one another."""
    place, stream = 8, b""
    while place < len(png):
        length, kind = int.from_bytes(png[place : place + 4]), png[place + 4 : place + 8]
        body = png[place + 8 : place + 8 + length]
        assert int.from_bytes(png[place + 8 + length : place + 12 + length]) == zlib.crc32(kind + body)
        stream += body if kind == b"IDAT" else b""
        place += 12 + length
    return stream


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("strip_bytes", [1, 5000, 1 << 20], ids=["rows", "strips", "one"])
def test_other_programs_read_the_very_pixels(
    bits: int, bands: int, strip_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png_file, "_STRIP_BYTES", strip_bytes)
    pixels = draw(61, 83, bands, bits)
    png = write(pixels, pieces=7)
    assert (pyvips.Image.new_from_buffer(png, "").numpy() == pixels).all()
    rows = zlib.decompress(read_stream(png))  # checks the sum of all
    assert len(rows) == pixels.nbytes + 61
    with Image.open(BytesIO(png)) as image:
        assert (image.size, image.info["icc_profile"]) == ((83, 61), PROFILE)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert bits == 16 or (np.asarray(image) == pixels).all()


def test_the_number_of_cores_does_not_change_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, files = draw(700, 900, 3, 8), set[bytes]()
    for cores, pieces in ((1, 1), (2, 3), (5, 400)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        files.add(write(pixels, pieces))
    assert len(files) == 1
    assert len(files.pop()) < 0.99 * pixels.nbytes


class FullDisk(BytesIO):
    def write(self, data: bytes) -> int:
        if self.tell() > 1 << 20:
            raise OSError(ENOSPC, "No space left on device")
        return super().write(data)


def write_for_ever(png: PngFile, data: bytes) -> None:
    while True:
        png.write(data)


def test_a_full_disk_ends_it_and_leaves_no_thread() -> None:
    noise, threads = np.random.default_rng(0).bytes(1 << 20), threading.active_count()
    with PngFile(FullDisk(), (4000, 1000, 3), 8, 300, PROFILE, b"") as png:
        with pytest.raises(OSError, match="No space"):
            write_for_ever(png, noise)
        assert threading.active_count() > threads
    assert threading.active_count() == threads
