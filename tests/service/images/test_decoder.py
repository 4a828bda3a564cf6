"""Files that come in: every kind of pixel, whatever lies beside the pixels, and whatever is broken."""

import fcntl
import struct
import subprocess
import sys
import tempfile
import zlib
from io import BytesIO
from typing import IO

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from service.images.decoder import RefusedError, clean
from service.images.formats import name_formats, readable_formats
from tests.service.images.test_colors import cleaned, encode, profile, with_chunks

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_adobe_deflate"}}
ALL = {**LOSSLESS, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}


def noise(height: int = 12, width: int = 20, channels: int = 3, kind: str = "uint8") -> np.ndarray:
    top = np.iinfo(kind).max + 1
    return np.random.default_rng(0).integers(0, top, (height, width, channels)).astype(kind)


def smooth() -> Image.Image:
    """Another colour in each corner, so that a turn is seen."""
    y, x = np.mgrid[0:48, 0:64] / 64
    return Image.fromarray((np.stack([x, y, 1 - x], -1) * 250).astype(np.uint8))


def read(file: bytes) -> np.ndarray:
    with Image.open(BytesIO(cleaned(file))) as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", "RGB", {})
        return np.asarray(picture)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_pixels_are_taken_as_they_are(kind: str) -> None:
    assert (read(encode(Image.fromarray(noise()), kind, **LOSSLESS[kind])) == noise()).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ALL)
def test_a_turned_picture_is_put_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    labelled = smooth()
    labelled.info["exif"] = exif.tobytes()
    found = read(encode(smooth(), kind, exif=exif, **ALL[kind])).astype(int)
    expected = np.asarray(ImageOps.exif_transpose(labelled)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_spoilt_exif_block_does_not_refuse_the_picture(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "told" * 8
    block = bytearray(exif.tobytes())
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(6, len(block) - 1))] = data.draw(st.integers(0, 255))
    spoilt = bytes(block[: data.draw(st.integers(6, len(block)))])
    for kind in ("PNG", "WEBP", "JPEG"):
        assert read(encode(smooth(), kind, exif=spoilt, **ALL[kind])).size == 64 * 48 * 3


def png_16(pixels: np.ndarray, color_type: int, key: tuple[int, ...] = ()) -> bytes:
    """Pillow writes no 16 bits of colour."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"tRNS", struct.pack(f">{len(key)}H", *key)),
        (b"IDAT", zlib.compress(rows)),
    ]
    laid = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
        if body or kind != b"tRNS"
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(laid)


def test_sixteen_bits_are_halved() -> None:
    deep = noise(kind="uint16")
    grey = deep[..., :1]
    assert (read(png_16(deep, 2)) == deep >> 8).all()
    assert (read(png_16(grey, 0)) == grey >> 8).all()
    file = BytesIO()
    tifffile.imwrite(file, deep, photometric="rgb")
    assert (read(file.getvalue()) == deep >> 8).all()
    file = BytesIO()
    tifffile.imwrite(file, grey[..., 0], photometric="minisblack", byteorder=">")
    assert (read(file.getvalue()) == grey >> 8).all()


def test_sixteen_bits_have_a_hidden_colour_or_alpha_too() -> None:
    deep = noise(kind="uint16")
    deep[3, 4] = 0x1234, 0x2234, 0x3234
    found = read(png_16(deep, 2, (0x1234, 0x2234, 0x3234)))
    assert (found[3, 4] == 0).all()
    assert (found[0] == deep[0] >> 8).all()
    found = read(png_16(deep[..., :1], 0, (0x1234,)))
    assert (found[3, 4] == 0).all()
    assert (found[0] == deep[0, :, :1] >> 8).all()
    clear = np.dstack([deep[..., :1], np.zeros_like(deep[..., :1])])
    assert not read(png_16(clear, 4)).any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_a_file_is_read(mode: str) -> None:
    kind = {"P": "PNG", "LA": "PNG", "RGBA": "PNG", "PA": "PNG"}.get(mode, "TIFF")
    source = smooth().convert("P" if mode == "PA" else mode)
    file = encode(source, kind, **({"transparency": 0} if mode == "PA" else {}))
    found = read(file).astype(int)
    wanted = np.asarray(source.convert("L" if mode in ("1", "LA") else "RGB").convert("RGB")).astype(int)
    shown = np.asarray(source) != 0 if mode == "PA" else np.full(found.shape[:2], True)
    assert np.abs(found - wanted)[shown].max() <= 4
    assert not found[~shown].any()


def test_what_is_half_transparent_is_half_black() -> None:
    half = Image.new("RGBA", (8, 8), (200, 100, 50, 128))
    for kind in ("PNG", "TIFF", "WEBP", "AVIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert np.abs(read(encode(half, kind, **options)).astype(int) - [100, 50, 25]).max() <= 3


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_kept_where_it_is_asked_for(kind: str, orientation: int) -> None:
    pixels = noise(channels=4)
    pixels[..., 3] = pixels[..., 3].clip(1)  # else a WebP keeps no colour there
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = LOSSLESS[kind] | {"exif": exif}
    turned = np.rot90(pixels, -1) if orientation == 6 else pixels
    assert (keep(encode(Image.fromarray(pixels), kind, **options)) == turned).all()


def test_every_kind_of_transparency_is_alpha_and_without_any_there_is_none() -> None:
    grey = noise(channels=2)
    assert (keep(encode(Image.fromarray(grey))) == np.dstack([grey[..., [0, 0, 0]], grey[..., 1]])).all()
    deep = noise(kind="uint16", channels=4)
    assert (keep(png_16(deep, 6)) == deep >> 8).all()
    hidden = noise()
    hidden[3, 4] = 1, 2, 3
    found = keep(encode(Image.fromarray(hidden), "PNG", transparency=(1, 2, 3)))
    assert (found[..., 3] == 255).sum() == found[..., 3].size - 1
    assert found[3, 4, 3] == 0
    assert keep(encode(Image.fromarray(noise()))).shape == (12, 20, 3)


def keep(file: bytes) -> np.ndarray:
    target = BytesIO()
    clean(file, 1.0, target, alpha="kept")
    with Image.open(target) as picture:
        return np.asarray(picture)


def test_a_mask_by_alpha_is_white_where_it_is_transparent() -> None:
    """OpenAI's rule: of any kind of transparency, whatever the colours are; what is opaque all over marks nothing."""
    pixels = noise(channels=4)
    target, summary = BytesIO(), BytesIO()
    clean(encode(Image.fromarray(pixels)), 1.0, target, summary, alpha="marks")
    with Image.open(target) as marks:
        assert (np.asarray(marks) == 255 - pixels[..., 3:]).all()
    with Image.open(summary) as reduced:
        assert (np.asarray(reduced) == 255 - pixels[..., 3]).all()
    for opaque in (noise(), np.dstack([noise(), np.full((12, 20, 1), 255, np.uint8)])):
        with pytest.raises(RefusedError, match="transparent where it is to be painted"):
            clean(encode(Image.fromarray(opaque)), 1.0, BytesIO(), BytesIO(), alpha="marks")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "TIFF"])
def test_of_several_pictures_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ((250, 0, 0), (0, 250, 0))]
    found = read(encode(frames[0], kind, save_all=True, append_images=frames[1:], **ALL[kind]))
    assert np.abs(found.astype(int) - [250, 0, 0]).max() <= 4


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (80 << 20))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * (80 << 20))),
        (b"tEXt", b"Comment\0" + b"x" * (3 << 20)),
        (b"iCCP", b"large\0\0" + zlib.compress(profile("srgb") + bytes(3 << 20))),
        (b"iCCP", b"bomb\0\0" + zlib.compress(bytes(80 << 20))),
        (b"iCCP", b"broken\0\0nothing packed"),
        (b"zTXt", b"broken"),
        (b"gAMA", b"1"),
        (b"tIME", b""),
        (b"abCd", b"unknown"),
    ],
    ids=lambda chunk: f"{chunk[0].decode()}-{chunk[1][:6]!r}",
)
def test_what_a_png_holds_beside_pixels_neither_harms_nor_refuses_it(chunk: tuple[bytes, bytes]) -> None:
    png = encode(Image.fromarray(noise()))
    assert (read(with_chunks(png, chunk)) == noise()).all()
    spoilt = bytearray(with_chunks(png, chunk))
    spoilt[33 + 8 + len(chunk[1])] ^= 1  # its checksum
    assert (read(bytes(spoilt)) == noise()).all()


@pytest.mark.parametrize("kind", ["float32", "int32", "int16"])
def test_numbers_that_are_no_levels_are_refused(kind: str) -> None:
    file = BytesIO()
    tifffile.imwrite(file, np.ones((8, 8), kind))
    with pytest.raises(RefusedError, match="8 or 16 bits"):
        cleaned(file.getvalue())


def test_heic_is_named_where_it_cannot_be_read() -> None:
    file = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100)
    with pytest.raises(RefusedError) as refused:
        cleaned(file)
    can_read = any(each.name == "HEIC" for each in readable_formats())
    assert str(refused.value).startswith(f"a {name_formats()} picture")
    assert str(refused.value).endswith("not readable by this installation") is not can_read


@pytest.mark.parametrize("kind", ALL)
def test_a_broken_header_is_not_taken_for_another_format(kind: str) -> None:
    file = encode(smooth(), kind, **ALL[kind])
    name = next(each.name for each in readable_formats() if each.plugin == kind)
    with pytest.raises(RefusedError, match=f"this {name} has a broken header|this one is broken"):
        cleaned(file[:16] + bytes(len(file) - 16))


def files() -> list[bytes]:
    pictures = [encode(smooth(), kind, icc_profile=profile("p3"), **options) for kind, options in ALL.items()]
    return [*pictures, encode(smooth().convert("P"), "PNG", transparency=3), png_16(noise(kind="uint16"), 2)]


FILES = files()


@given(st.sampled_from(FILES), st.data())
@settings(max_examples=150, deadline=None)
def test_a_spoilt_file_is_read_or_refused_in_words(file: bytes, data: st.DataObject) -> None:
    spoilt = bytearray(file[: data.draw(st.integers(len(file) // 8, len(file)))])
    for _ in range(data.draw(st.integers(0, 4))):
        spoilt[data.draw(st.integers(0, min(len(spoilt), 900) - 1))] = data.draw(st.integers(0, 255))
    words = refusal(bytes(spoilt))
    assert words is None or (10 < len(words) < 300 and words.isprintable())


def refusal(file: bytes) -> str | None:
    try:
        read(file)
    except RefusedError as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_a_picture_of_several_strips_is_seamless(orientation: int) -> None:
    """Against Pillow, whole; the sides divide by nothing."""
    width_px, height_px = 1109, 1031
    y, x = np.mgrid[0:height_px, 0:width_px]
    pixels = np.stack([x % 256, y % 256, (x ^ y) % 256, 255 - (x + y) % 2 * 255], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(pixels)
    target, mask = BytesIO(), BytesIO()
    clean(encode(picture, "PNG", exif=exif, compress_level=0), 3.0, target, mask)
    picture.info["exif"] = exif.tobytes()
    upright = ImageOps.exif_transpose(picture)
    wanted = Image.composite(upright.convert("RGB"), Image.new("RGB", upright.size), upright.getchannel("A"))
    with Image.open(target) as found, Image.open(mask) as reduced:
        assert (np.asarray(found) == np.asarray(wanted)).all()
        assert (np.asarray(reduced) == np.asarray(wanted.convert("L").reduce(2))).all()


def test_a_large_picture_waits_for_its_turn_and_a_small_one_does_not() -> None:
    """The lock is the process's, so that it is free when the process ends, however it ends."""
    ask = "import fcntl; fcntl.lockf(0, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with tempfile.TemporaryFile() as turn:
        for side_px, is_free in ((64, True), (4096, False)):
            picture = encode(Image.new("1", (side_px, side_px)))
            clean(picture, 64.0, BytesIO(), turn=turn.fileno())
            asked = subprocess.run([sys.executable, "-c", ask], stdin=turn, stderr=subprocess.DEVNULL)
            assert (asked.returncode == 0) is is_free
        fcntl.lockf(turn, fcntl.LOCK_UN)


def decode(file: bytes, target: IO[bytes] | int) -> tuple[int, str, int]:
    """Exit code, words and peak memory in bytes of a decoder process of its own."""
    script = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
        "print('', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, sep='\\n', file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-m", "service.images.decoder", "64", str(2 << 30), "60", "-1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], input=file, stdout=target, stderr=subprocess.PIPE
    )
    *words, peak = done.stderr.decode().split("\n")[:-1]
    return done.returncode, "\n".join(words), int(peak) * (1 if sys.platform == "darwin" else 1024)


def test_a_deep_picture_takes_little_more_than_its_pixels() -> None:
    """16 bits and alpha: four bytes a pixel and a strip, for 17 when it was converted as a whole."""
    side_px = 2500
    flat = np.broadcast_to(np.uint16(40_000), (side_px, side_px, 4))
    _, _, small = decode(png_16(flat[:8, :8], 6), subprocess.DEVNULL)
    code, words, peak = decode(png_16(flat, 6), subprocess.DEVNULL)
    assert code == 0, words
    assert peak - small < 10 * side_px**2


def test_a_disk_without_space_is_not_the_picture_s_fault() -> None:
    with open("/dev/full", "wb") as full:
        code, words, _ = decode(encode(Image.fromarray(noise())), full)
    assert (code, words.strip()) == (2, "No space left on device")
