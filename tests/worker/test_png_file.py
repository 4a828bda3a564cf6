"""PNG files that several threads compress, as zlib, Pillow and libvips read them."""

import os
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from worker import png_file
from worker.png_file import write_png

PROFILE = b"profile"


def write(path: Path, pixels: np.ndarray) -> bytes:
    write_png(pyvips.Image.new_from_array(pixels), path, 300, PROFILE, b"")
    return path.read_bytes()


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
    bits: int, bands: int, strip_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png_file, "_STRIP_BYTES", strip_bytes)
    pixels = draw(61, 83, bands, bits)
    png = write(tmp_path / "a.png", pixels)
    assert (pyvips.Image.new_from_buffer(png, "").numpy() == pixels).all()
    rows = zlib.decompress(read_stream(png))  # checks the sum of all
    assert len(rows) == pixels.nbytes + 61
    with Image.open(BytesIO(png)) as image:
        assert (image.size, image.info["icc_profile"]) == ((83, 61), PROFILE)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert bits == 16 or (np.asarray(image) == pixels).all()


def test_the_number_of_cores_does_not_change_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, files = draw(700, 900, 3, 8), set[bytes]()
    for cores in (1, 2, 5):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        files.add(write(tmp_path / "a.png", pixels))
    assert len(files) == 1
    assert len(files.pop()) < 0.99 * pixels.nbytes


def test_a_full_disk_ends_it_and_leaves_no_thread() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    write(Path("/dev/null"), noise[:10, :10])  # libvips keeps its own threads
    threads = threading.active_count()
    with pytest.raises(OSError, match="No space"):
        write(Path("/dev/full"), noise)
    assert threading.active_count() == threads
