"""An invisible mark in the pixels: a pattern that is the same for all pictures, repeated every 256 px.

It says that a picture was made here, and no more. JAWS (T. Kalker, G. Depovere, J. Haitsma, M. Maes, "A video
watermarking system for broadcast monitoring", SPIE 3657, 1999): noise is added tile by tile, and found by folding the
picture into one tile and a phase-only correlation with the pattern, which needs no original and no position. Here the
noise is band-limited, so that it is still there after halving, and follows the picture's local contrast, so that it
is hidden, and not quantised away by JPEG. benchmarks/provenance.py measures what it survives.
"""

from typing import Final

import pyvips

_WEAKEST, _STRONGEST, _SHARE = 0.5, 1.8, 0.05  # of 255 levels; the share of local contrast between the two
_WINDOW_PX: Final = 9  # in which contrast is measured
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601


def add_watermark(image: pyvips.Image, share: pyvips.Image | None = None) -> pyvips.Image:
    """The picture with the mark; read from the top, in strips.

    Args:
        image: three bands of 8 or 16 bits, without alpha.
        share: one band, 0 to 1: how much of the mark each pixel gets; None: all of it. At 0 the pixel stays.
    """
    unit = 1.0 if image.format == "uchar" else 257.0
    luma = find_luma(image) / unit
    mean, power = (_blur(each) for each in (luma, luma * luma))
    variance = power - mean * mean
    contrast = (variance > 0).ifthenelse(variance, 0) ** 0.5
    strength = contrast * _SHARE + _WEAKEST
    strength = (strength > _STRONGEST).ifthenelse(_STRONGEST, strength)
    strength = strength if share is None else strength * share
    marked = image + strength * _tile_pattern(image.width, image.height) * unit
    return marked.rint().cast(image.format).copy(interpretation=image.interpretation)


def find_luma(image: pyvips.Image) -> pyvips.Image:
    return image.recomb(pyvips.Image.new_from_array([list(_LUMA)]))


def _tile_pattern(width: int, height: int) -> pyvips.Image:
    from provenance.pattern import PERIOD_PX, draw_pattern  # numpy, which workers without the mark do without

    tile = pyvips.Image.new_from_array(draw_pattern())
    across, down = -(-width // PERIOD_PX), -(-height // PERIOD_PX)
    return tile.replicate(across, down).crop(0, 0, width, height)


def _blur(image: pyvips.Image) -> pyvips.Image:
    row = pyvips.Image.new_from_array([[1.0] * _WINDOW_PX], scale=_WINDOW_PX)
    return image.convsep(row, precision="float")
