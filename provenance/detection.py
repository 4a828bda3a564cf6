"""Looks for the watermark in a file."""

from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyvips

from provenance.errors import UnreadableFileError
from provenance.pattern import PERIOD_PX, Plane, scale_pattern
from provenance.watermark import find_luma

LEAST_SCORE: Final = 9.0
"""Standard deviations; the most that 10**7 places and sizes gave in any of 101 photographs without the mark is 6.4."""

_SEEN_PX: Final = 2048  # side of the middle part that is looked at
_SMALLEST_PERIOD_PX: Final = 64


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


def _read_middle(path: Path) -> Plane:
    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential")
        width, height = min(image.width, _SEEN_PX), min(image.height, _SEEN_PX)
        image = image.crop((image.width - width) // 2, (image.height - height) // 2, width, height)
        if image.hasalpha():
            image = image.flatten(background=[255.0])
        luma = find_luma(image.colourspace("srgb")).cast("float")
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
    pattern = scale_pattern(period)
    products = folded * np.conj(pattern)
    known = np.abs(pattern) > 1e-3 * np.abs(pattern).max()
    phases = np.where(known, products / np.maximum(np.abs(products), 1e-30), 0)
    correlation = np.fft.ifft2(phases).real
    spread = float(correlation.std())
    return float(correlation.max()) / spread if spread > 0 else 0.0
