"""A picture at another size, its pixels' centres where they were."""

from math import ceil

import pyvips


def scale_to(image: pyvips.Image, width: float, height: float) -> pyvips.Image:
    """Bicubic where it grows; with libvips' own antialiasing where it shrinks. What is no whole pixel ends within the last.

    libvips' `resize` and thumbnails enlarge with half a pixel of the result to the right and down (8.18).
    """
    across, down = width / image.width, height / image.height
    reduced = image.resize(min(across, 1), vscale=min(down, 1))
    across, down = width / reduced.width, height / reduced.height
    if across == down == 1:
        return reduced
    return reduced.affine(
        [across, 0, 0, down], interpolate=pyvips.Interpolate.new("bicubic"), oarea=[0, 0, ceil(width), ceil(height)],
        odx=(across - 1) / 2, ody=(down - 1) / 2, extend="copy",
    )  # fmt: skip
