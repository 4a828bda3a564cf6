"""A mask picture as the service needs it. Without pydantic, as the decoder, which writes it."""

from math import ceil
from typing import IO, Final, cast

from PIL import Image

_SIDE_PX: Final = 1024  # of the longest side: predictions are counted by tiles, which are larger than a pixel
_BLACK: Final = 3  # of 255, where a mask begins to count


class MaskSummary:
    """The grey of a picture, reduced, from its strips: the picture as a whole is too large for the service.

    Args:
        factor: by which sides are divided; all strips but the last have a multiple of it as their height.
    """

    def __init__(self, width_px: int, height_px: int) -> None:
        self.factor = ceil(max(width_px, height_px) / _SIDE_PX)
        self._reduced = Image.new("L", (ceil(width_px / self.factor), ceil(height_px / self.factor)))
        self._top = 0
        self._brightest = 0

    def add(self, strip: Image.Image) -> None:
        grey = strip.convert("L")
        self._brightest = max(self._brightest, cast(tuple[int, int], grey.getextrema())[1])
        piece = grey.reduce(self.factor)
        self._reduced.paste(piece, (0, self._top))
        self._top += piece.height

    @property
    def is_black(self) -> bool:
        """All over, so far."""
        return self._brightest < _BLACK

    def write(self, target: IO[bytes]) -> None:
        """As PNG; nothing for a picture that is black all over."""
        if not self.is_black:
            self._reduced.save(target, "PNG")
