"""Conversion from the colours that a file declares to sRGB."""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, ImageCms

_SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
_INTENT: Final = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS: Final = ImageCms.Flags.BLACKPOINTCOMPENSATION
_MODES: Final = {
    b"RGB ": "RGB",
    b"GRAY": "L",
    b"CMYK": "CMYK",
}  # by a profile's colour space, ICC.1:2022, 7.2.8
_LEVELS: Final = 17  # of each channel, to see what a profile does

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of red, green, blue and white."""

_D65: Final = (0.3127, 0.3290)
SRGB_PRIMARIES: Final[Chromaticities] = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65)
# Rec. ITU-T H.273, table 2; what is unspecified or unknown is sRGB.
_PRIMARIES: Final[dict[int, Chromaticities]] = {
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
}
# Table 3. Video's curves are shown on displays of about sRGB's, and so they are taken for it.
_GAMMAS: Final = {4: 2.2, 5: 2.8, 8: 1.0}
_HIGH_RANGE: Final = {16: "PQ", 18: "HLG"}
# Lindbloom, "Chromatic Adaptation": Bradford's cone responses; ICC.1:2022, 7.2.16: D50.
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50: Final = np.array([0.9642, 1.0, 0.8249])


class HighRangeError(Exception):
    """A picture of high dynamic range, which would need tone mapping."""


@dataclass(frozen=True, slots=True)
class Declared:
    """Colours that a file declares; None where it declares nothing.

    Args:
        codes: primaries and transfer, Rec. ITU-T H.273.
        icc: a profile.
        gamma: of the decoding curve; None: sRGB's.
    """

    codes: tuple[int, int] | None = None
    icc: bytes | None = None
    gamma: float | None = None
    primaries: Chromaticities | None = None


def to_srgb(image: Image.Image, declared: Declared) -> Image.Image:
    """RGB in sRGB, from L, RGB or CMYK; a profile that is broken, or of another kind of picture, is ignored.

    Raises:
        HighRangeError: PQ or HLG.
    """
    icc = _choose_profile(declared) or b""
    mode = _MODES.get(icc[16:20])
    if mode == "RGB" and image.mode == "L":  # such files are common: grey pixels, an RGB profile
        image = image.convert("RGB")
    if mode != image.mode:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        known = mode == "RGB" and _is_srgb(profile)
        return image.convert("RGB") if known else _convert(image, profile)
    except (OSError, ImageCms.PyCMSError):
        return image.convert("RGB")


def _choose_profile(declared: Declared) -> bytes | None:
    """Order of precedence: codes, profile, curve and primaries (PNG, third edition, 4.3)."""
    if declared.codes is not None:
        primaries, transfer = declared.codes
        if transfer in _HIGH_RANGE:
            raise HighRangeError(_HIGH_RANGE[transfer])
        return _build_profile(_PRIMARIES.get(primaries, SRGB_PRIMARIES), _GAMMAS.get(transfer))
    if declared.icc is None and (declared.gamma or declared.primaries):
        return _build_profile(declared.primaries or SRGB_PRIMARIES, declared.gamma)
    return declared.icc


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether it moves no colour by more than a level: then pixels stay as they are."""
    steps = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(_LEVELS, -1, 3)
    converted = np.asarray(_convert(Image.fromarray(colors), profile))
    return bool(np.abs(converted.astype(int) - colors).max() <= 1)


def _convert(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    if image.mode != "L":
        return _transform(image, profile, _FLAGS)
    # LittleCMS samples a curve at 33 points, too few near black; so each level is converted separately.
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = _transform(ramp, profile, _FLAGS | ImageCms.Flags.NOOPTIMIZE)
    return Image.merge("RGB", [image.point(list(channel.tobytes())) for channel in levels.split()])


def _transform(image: Image.Image, profile: ImageCms.ImageCmsProfile, flags: ImageCms.Flags) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, _SRGB, _INTENT, outputMode="RGB", flags=flags)
    assert converted is not None  # it is where a picture is converted in place
    return converted


def _build_profile(chromaticities: Chromaticities, gamma: float | None) -> bytes | None:
    """A display profile of three primaries and a curve (ICC.1:2022, 8.4.3); None if they make no colours."""
    points = np.array(chromaticities).reshape(4, 2)
    try:
        with np.errstate(all="raise"):
            columns = _to_d50(points)
    except (np.linalg.LinAlgError, FloatingPointError):
        return None
    if not np.isfinite(columns).all() or np.abs(columns).max() > 4:
        return None
    curve = _curve(gamma)
    tags = {b"wtpt": _xyz(_D50)}
    tags |= {name + b"XYZ": _xyz(column) for name, column in zip((b"r", b"g", b"b"), columns.T, strict=True)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    return _lay_out(tags)


def _to_d50(points: np.ndarray) -> np.ndarray:
    """XYZ of the primaries as columns, adapted to D50 (Lindbloom, "RGB/XYZ Matrices")."""
    xyz = np.stack([points[:, 0] / points[:, 1], np.ones(4), (1 - points.sum(1)) / points[:, 1]])
    primaries, white = xyz[:, :3], xyz[:, 3]
    scaled = primaries * np.linalg.solve(primaries, white)
    ratio = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    return np.linalg.solve(_BRADFORD, ratio[:, None] * (_BRADFORD @ scaled))


def _curve(gamma: float | None) -> bytes:
    """`parametricCurveType`: a power, or sRGB's curve (IEC 61966-2-1)."""
    if gamma is not None:
        return struct.pack(">4s4xH2xi", b"para", 0, _fixed(gamma))
    values = map(_fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    return struct.pack(">4s4xH2x5i", b"para", 3, *values)


def _xyz(values: np.ndarray) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *map(_fixed, values.tolist()))


def _fixed(value: float) -> int:
    """`s15Fixed16Number`."""
    return round(value * 65536)


def _lay_out(tags: dict[bytes, bytes]) -> bytes:
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content
    size = start + len(body)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    white = struct.pack(">3i", *map(_fixed, _D50.tolist()))
    return (head.ljust(68, b"\0") + white).ljust(128, b"\0") + table + body
