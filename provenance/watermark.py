"""An invisible mark in the pixels: a pattern that is the same for all pictures, repeated every 256 px.

It says that a picture was made here, and no more. JAWS (T. Kalker, G. Depovere, J. Haitsma, M. Maes, "A video
watermarking system for broadcast monitoring", SPIE 3657, 1999): noise is added tile by tile, and found by folding the
picture into one tile and a phase-only correlation with the pattern, which needs no original and no position. Here the
noise is band-limited, so that it is still there after halving, and follows the picture's local contrast, so that it
is hidden, and not quantised away by JPEG. benchmarks/provenance.py measures what it survives.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyvips
from numpy.typing import NDArray

from provenance.errors import UnreadableFileError

PERIOD_PX: Final = 256
LEAST_SCORE: Final = 8.0
"""Standard deviations; of 10**7 places and sizes tried in a picture without a mark, the best has 5 to 6."""

_SEED: Final = b"chorale watermark 1"
_BAND: Final = (0.05, 0.20)  # cycles per pixel; what is above 0.25 is gone after halving
_WEAKEST, _STRONGEST, _SHARE = 0.5, 1.8, 0.05  # of 255 levels; the share of local contrast between the two
_WINDOW_PX: Final = 9  # in which contrast is measured
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SEEN_PX: Final = 2048  # side of the middle part that is looked at
_SMALLEST_PERIOD_PX: Final = 64
_HIGHEST: Final = 0.42  # cycles per pixel, that a scaled picture still shows

Plane = NDArray[np.float64]


def add_watermark(image: pyvips.Image, share: pyvips.Image | None = None) -> pyvips.Image:
    """The picture with the mark; read from the top, in strips.

    Args:
        image: three bands of 8 or 16 bits, without alpha.
        share: one band, 0 to 1: how much of the mark each pixel gets; None: all of it. At 0 the pixel stays.
    """
    unit = 1.0 if image.format == "uchar" else 257.0
    luma = _find_luma(image) / unit
    mean, power = (_blur(each) for each in (luma, luma * luma))
    variance = power - mean * mean
    contrast = (variance > 0).ifthenelse(variance, 0) ** 0.5
    strength = contrast * _SHARE + _WEAKEST
    strength = (strength > _STRONGEST).ifthenelse(_STRONGEST, strength)
    strength = strength if share is None else strength * share
    marked = image + strength * _tile_pattern(image.width, image.height) * unit
    return marked.rint().cast(image.format).copy(interpretation=image.interpretation)


def score_watermark(path: Path) -> float:
    """How clearly the mark shows, in standard deviations: from `LEAST_SCORE` on it is there.

    Looked for at the picture's own size and at all smaller ones, down to a quarter, at which 256 px become whole pixels.

    Raises:
        UnreadableFileError: the pixels cannot be decoded.
    """
    residual = _find_residual(_read_middle(path))
    scores = [_score(residual, period) for period in (PERIOD_PX, PERIOD_PX // 2)]
    if max(scores) < LEAST_SCORE:
        scores += [_score(residual, period) for period in range(_SMALLEST_PERIOD_PX, PERIOD_PX)]
    return max(scores)


@cache
def _draw_pattern() -> Plane:
    """(256, 256): noise of mean 0 and variance 1 in the band. SHAKE-256 gives the same bytes for ever."""
    drawn = np.frombuffer(hashlib.shake_256(_SEED).digest(PERIOD_PX**2), np.uint8)
    spectrum = np.fft.fft2(drawn.reshape(PERIOD_PX, PERIOD_PX) - 127.5)
    radius = _measure_radius(PERIOD_PX)
    inside = (radius >= _BAND[0]) & (radius <= _BAND[1])
    flat = np.where(inside, spectrum / np.maximum(np.abs(spectrum), 1e-9), 0)
    noise = np.fft.ifft2(flat).real
    return noise / noise.std()


def _measure_radius(side: int) -> NDArray[np.float64]:
    """Spatial frequency of each coefficient, cycles per pixel."""
    steps = np.fft.fftfreq(side)
    return np.hypot(steps[:, None], steps[None, :])


def _tile_pattern(width: int, height: int) -> pyvips.Image:
    tile = pyvips.Image.new_from_array(_draw_pattern())
    across, down = -(-width // PERIOD_PX), -(-height // PERIOD_PX)
    return tile.replicate(across, down).crop(0, 0, width, height)


def _find_luma(image: pyvips.Image) -> pyvips.Image:
    return image.recomb(pyvips.Image.new_from_array([list(_LUMA)]))


def _blur(image: pyvips.Image) -> pyvips.Image:
    row = pyvips.Image.new_from_array([[1.0] * _WINDOW_PX], scale=_WINDOW_PX)
    return image.convsep(row, precision="float")


def _read_middle(path: Path) -> Plane:
    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential")
        width, height = min(image.width, _SEEN_PX), min(image.height, _SEEN_PX)
        image = image.crop((image.width - width) // 2, (image.height - height) // 2, width, height)
        if image.hasalpha():
            image = image.flatten(background=[255.0])
        luma = _find_luma(image.colourspace("srgb")).cast("float")
        return cast(Plane, luma.numpy()).reshape(height, width)
    except pyvips.Error as error:
        raise UnreadableFileError(f"{path} cannot be decoded: {_shorten(error)}") from error


def _shorten(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else "damaged"


def _find_residual(luma: Plane) -> Plane:
    """What is finer than 7 px, divided by how strong it is around there, so that edges do not outweigh the rest."""
    fine = luma - _average(luma, 7)
    around = np.sqrt(np.maximum(_average(fine * fine, 28), 0)) + 1
    return fine / around


def _average(plane: Plane, window: int) -> Plane:
    image = pyvips.Image.new_from_array(plane)
    row = pyvips.Image.new_from_array([[1.0] * window], scale=window)
    return cast(Plane, image.convsep(row, precision="float").numpy()).reshape(plane.shape)


def _score(residual: Plane, period: int) -> float:
    """Highest correlation over all positions, in its own standard deviations."""
    rows, columns = (side // period for side in residual.shape)
    if not rows or not columns:
        return 0.0
    whole = residual[: rows * period, : columns * period]
    folded = np.fft.fft2(whole.reshape(rows, period, columns, period).mean((0, 2)))
    pattern = _scale_pattern(period)
    products = folded * np.conj(pattern)
    known = np.abs(pattern) > 1e-3 * np.abs(pattern).max()
    phases = np.where(known, products / np.maximum(np.abs(products), 1e-30), 0)
    correlation = np.fft.ifft2(phases).real
    spread = float(correlation.std())
    return float(correlation.max()) / spread if spread > 0 else 0.0


def _scale_pattern(period: int) -> NDArray[np.complex128]:
    """Spectrum of the pattern scaled to that period: the same coefficients, less those that it cannot show."""
    spectrum = np.fft.fftshift(np.fft.fft2(_draw_pattern()))
    first = PERIOD_PX // 2 - period // 2
    inner = np.fft.ifftshift(spectrum[first : first + period, first : first + period])
    limit = _HIGHEST if period < PERIOD_PX else 1.0
    return np.where(_measure_radius(period) <= limit, inner, 0)
