"""Colours that come in: against the published matrices of CSS Color 4 and against libvips."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import pyvips
from PIL import Image

from service.images.colors import Chromaticities, Declared, to_srgb
from service.images.decoder import RefusedError, clean

# CSS Color Module Level 4, "Sample code for color conversions": linear light to XYZ, D65.
TO_XYZ = {
    "p3": [
        [608311 / 1250200, 189793 / 714400, 198249 / 1000160],
        [35783 / 156275, 247089 / 357200, 198249 / 2500400],
        [0, 32229 / 714400, 5220557 / 5000800],
    ],
    "a98": [
        [573536 / 994567, 263643 / 1420810, 187206 / 994567],
        [591459 / 1989134, 6239551 / 9945670, 374412 / 4972835],
        [53769 / 1989134, 351524 / 4972835, 4929758 / 4972835],
    ],
    "rec2020": [
        [63426534 / 99577255, 20160776 / 139408157, 47086771 / 278816314],
        [26158966 / 99577255, 472592308 / 697040785, 8267143 / 139408157],
        [0, 19567812 / 697040785, 295819943 / 278816314],
    ],
    "prophoto": np.array(
        [
            [0.955473421488075, -0.02309845494876471, 0.06325924320057072],
            [-0.0283697093338637, 1.0099953980813041, 0.021041441191917323],
            [0.012314014864481998, -0.020507649298898964, 1.330365926242124],
        ]
    )
    @ [
        [0.79776664490064230, 0.13518129740053308, 0.03134773412839220],
        [0.28807482881940130, 0.71183523424187300, 0.00008993693872564],
        [0, 0, 0.82510460251046020],
    ],
}
TO_SRGB = [
    [12831 / 3959, -329 / 214, -1974 / 3959],
    [-851781 / 878810, 1648619 / 878810, 36519 / 878810],
    [705 / 12673, -2585 / 12673, 705 / 667],
]
CORNERS: dict[str, Chromaticities] = {
    "p3": (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
    "a98": (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290),
    "rec2020": (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    "prophoto": (0.734699, 0.265301, 0.159597, 0.840403, 0.036598, 0.000105, 0.345704, 0.358540),
}
GAMMAS = {"p3": None, "a98": 563 / 256, "rec2020": None, "prophoto": 1.8}
PATCHES = np.array(
    [
        *[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128]],
        *[[200, 100, 50], [60, 120, 180], [230, 220, 180], [20, 40, 30], [180, 60, 160]],
    ],
    np.uint8,
)


def cleaned(file: bytes) -> bytes:
    target = BytesIO()
    clean(file, 1.0, target)
    return target.getvalue()


def expect(space: str, colors: np.ndarray = PATCHES) -> np.ndarray:
    """sRGB of these colours, clipped."""
    gamma, values = GAMMAS[space], colors / 255
    linear = decode_srgb(values) if gamma is None else values**gamma
    srgb = (linear @ (np.array(TO_SRGB) @ TO_XYZ[space]).T).clip(0, 1)
    return np.where(srgb <= 0.0031308, srgb * 12.92, 1.055 * srgb ** (1 / 2.4) - 0.055) * 255


def decode_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def patches(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(PATCHES[None]).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(file: bytes) -> np.ndarray:
    with Image.open(BytesIO(cleaned(file))) as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", "RGB", {})
        return np.asarray(picture).astype(int)


def profile(name: str) -> bytes:
    """One of those that libvips brings along."""
    return pyvips.Operation.call("profile_load", name)


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """These behind the header."""
    laid = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return png[:33] + laid + png[33:]


def corners(space: str) -> bytes:
    """`cHRM`."""
    *colors, white_x, white_y = CORNERS[space]
    return struct.pack(">8I", *(round(value * 100_000) for value in (white_x, white_y, *colors)))


@pytest.mark.parametrize("space", CORNERS)
def test_primaries_and_a_curve_are_those_of_the_published_matrices(space: str) -> None:
    declared = Declared(primaries=CORNERS[space], gamma=GAMMAS[space])
    found = np.asarray(to_srgb(patches(), declared)).astype(int)[0]
    assert np.abs(found - expect(space)).max() <= 1.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_is_applied_in_every_kind_of_file(kind: str) -> None:
    """Display P3's pure red, which sRGB does not have, and a colour that it has."""
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    for color in ((255, 0, 0), (200, 100, 50)):
        file = encode(Image.new("RGB", (64, 64), color), kind, icc_profile=profile("p3"), **options)
        assert np.abs(read(file) - expect("p3", np.array(color))).max() <= 3


def test_an_srgb_profile_moves_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (read(encode(Image.fromarray(noise), icc_profile=profile("srgb"))) == noise).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_press_profile_is_applied_as_libvips_does(kind: str) -> None:
    inks = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    options = {"JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    file = encode(Image.fromarray(inks, "CMYK"), kind, icc_profile=profile("cmyk"), **options)
    other = pyvips.Image.new_from_buffer(file, "").icc_transform(
        "srgb", embedded=True, intent="relative", black_point_compensation=True
    )
    assert np.abs(read(file) - other.numpy().astype(int)).max() <= 3


def test_inks_without_a_profile_are_what_pillow_makes_of_them() -> None:
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert (read(encode(inks, "TIFF")) == [255, 0, 0]).all()


def grey_profile(gamma: float) -> bytes:
    """A display of one curve (ICC.1:2022, 8.4.2), written here by its own hand: Pillow makes none."""
    curve = struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256)) + b"\0\0"
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 14)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i", 192, 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp", 63190, 65536, 54061
    )
    return head.ljust(128, b"\0") + table + white + curve


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_with_a_grey_profile_is_shown_by_its_curve(mode: str) -> None:
    greys = Image.linear_gradient("L").resize((16, 256)).convert(mode)
    found = read(encode(greys, icc_profile=grey_profile(1.0)))[:, 0]
    linear = np.asarray(greys.convert("L"))[:, :1] / 255
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found - expected).max() <= 1.5


def test_grey_with_a_profile_for_colour_is_shown_by_it() -> None:
    greys = Image.linear_gradient("L")
    assert np.abs(read(encode(greys, icc_profile=profile("p3"))) - np.asarray(greys)[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "icc"),
    [
        ("RGB", b"no profile"),
        ("RGB", profile("p3")[:200]),
        ("RGB", profile("p3")[:128] + b"\xff" * 300),
        ("RGB", profile("cmyk")),
        ("RGB", grey_profile(1.0)),
        ("L", profile("cmyk")),
        ("CMYK", profile("p3")),
    ],
)
def test_a_profile_that_is_broken_or_lies_is_ignored(mode: str, icc: bytes) -> None:
    bare = read(encode(patches(mode), "TIFF"))
    assert (read(encode(patches(mode), "TIFF", icc_profile=icc)) == bare).all()


def test_of_what_a_png_says_the_strongest_word_counts() -> None:
    """PNG specification, third edition, 4.3: cICP, iCCP, sRGB, then gAMA with cHRM."""
    plain = encode(patches())
    p3, srgb, wide = (b"cICP", b"\x0c\x0d\0\1"), (b"sRGB", b"\0"), (b"cHRM", corners("rec2020"))
    gamma = (b"gAMA", struct.pack(">I", 45455))
    icc = (b"iCCP", b"p\0\0" + zlib.compress(profile("p3")))
    expected = {"srgb": PATCHES, "p3": expect("p3"), "rec2020": expect("rec2020")}
    for chunks, space in [
        ((gamma, wide), "rec2020"),
        ((srgb, gamma, wide), "srgb"),
        ((icc, gamma, wide), "p3"),
        ((p3, srgb, gamma, wide), "p3"),
        (((b"cICP", b"\x09\x0d\0\1"), icc), "rec2020"),
        (((b"cICP", b"\x09"), icc), "p3"),
        (((b"iCCP", b"p\0\0" + zlib.compress(b"0" * (20 << 20))), gamma, wide), "rec2020"),
        (((b"cHRM", bytes(32)), gamma), "srgb"),
        (((b"gAMA", bytes(4)), (b"cHRM", b"\xff" * 32)), "srgb"),
    ]:
        found = read(with_chunks(plain, *chunks))[0]
        assert np.abs(found - expected[space]).max() <= 2, (chunks, space)


def test_a_curve_alone_is_applied() -> None:
    found = read(with_chunks(encode(patches()), (b"gAMA", struct.pack(">I", 100_000))))[0]
    assert (found[5] == 188).all()  # half of the light


def avif(primaries: int, transfer: int) -> bytes:
    """Pillow writes `nclx` with sRGB's codes."""
    file = encode(Image.new("RGB", (64, 64), (200, 100, 50)), "AVIF", quality=100, subsampling="4:4:4")
    place = file.index(b"colrnclx") + 8
    assert file[place : place + 4] == b"\0\x01\0\x0d"
    return file[:place] + struct.pack(">HH", primaries, transfer) + file[place + 4 :]


@pytest.mark.parametrize(("primaries", "space"), [(12, "p3"), (9, "rec2020")])
def test_an_avif_is_shown_by_its_codes(primaries: int, space: str) -> None:
    found = read(avif(primaries, 13))
    assert np.abs(found - expect(space, np.array([200, 100, 50]))).max() <= 3
    assert np.abs(read(avif(2, 2)) - [200, 100, 50]).max() <= 2


@pytest.mark.parametrize(
    "file", [avif(9, 16), avif(9, 18), with_chunks(encode(patches()), (b"cICP", b"\x09\x10\0\1"))]
)
def test_a_high_range_is_refused_by_its_name(file: bytes) -> None:
    with pytest.raises(RefusedError, match=r"standard dynamic range; this one is (PQ|HLG)"):
        cleaned(file)
