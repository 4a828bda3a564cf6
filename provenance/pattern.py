"""The pattern of the watermark, and its spectrum at other sizes."""

import hashlib
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

PERIOD_PX: Final = 256
Plane = NDArray[np.float64]

_SEED: Final = b"chorale watermark 1"
_BAND: Final = (0.05, 0.20)  # cycles per pixel; what is above 0.25 is gone after halving
_HIGHEST: Final = 0.42  # cycles per pixel, that a scaled picture still shows


@cache
def draw_pattern() -> Plane:
    """(256, 256): noise of mean 0 and variance 1 in the band. SHAKE-256 gives the same bytes for ever."""
    drawn = np.frombuffer(hashlib.shake_256(_SEED).digest(PERIOD_PX**2), np.uint8)
    spectrum = np.fft.fft2(drawn.reshape(PERIOD_PX, PERIOD_PX) - 127.5)
    radius = _measure_radius(PERIOD_PX)
    inside = (radius >= _BAND[0]) & (radius <= _BAND[1])
    flat = np.where(inside, spectrum / np.maximum(np.abs(spectrum), 1e-9), 0)
    noise = np.fft.ifft2(flat).real
    return noise / noise.std()


def scale_pattern(period: int) -> NDArray[np.complex128]:
    """Spectrum of the pattern scaled to that period: the same coefficients, less those that it cannot show."""
    first = PERIOD_PX // 2 - period // 2
    inner = np.fft.ifftshift(_transform()[first : first + period, first : first + period])
    limit = _HIGHEST if period < PERIOD_PX else 1.0
    return np.where(_measure_radius(period) <= limit, inner, 0)


@cache
def _transform() -> NDArray[np.complex128]:
    """The pattern's spectrum, frequency 0 in the middle."""
    return np.fft.fftshift(np.fft.fft2(draw_pattern()))


def _measure_radius(side: int) -> NDArray[np.float64]:
    """Spatial frequency of each coefficient, cycles per pixel."""
    steps = np.fft.fftfreq(side)
    return np.hypot(steps[:, None], steps[None, :])
