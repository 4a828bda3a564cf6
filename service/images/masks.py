"""Mask pictures, as the service needs them: to count predictions, and to refuse those that are empty."""

from collections.abc import Mapping
from io import BytesIO
from math import ceil
from typing import IO, Final, cast, get_args

from PIL import Image

from api_schemas.errors import FieldError
from api_schemas.generation import PicturePart
from api_schemas.regions import MaskPart
from service.errors import InvalidRequestError

_SIDE_PX: Final = 1024  # of the longest side: predictions are counted by tiles, which are larger than a pixel
_BLACK: Final = 3  # of 255, where a mask begins to count
MASK_PARTS: Final[tuple[MaskPart, ...]] = get_args(MaskPart)


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


def read_masks(summaries: Mapping[PicturePart, bytes]) -> dict[MaskPart, Image.Image]:
    """The reduced masks, from what `MaskSummary` has written.

    Raises:
        InvalidRequestError: one is black all over.
    """
    return {part: _read(part, summaries[part]) for part in MASK_PARTS if part in summaries}


def _read(part: MaskPart, png: bytes) -> Image.Image:
    if not png:
        what = "the source is to be inpainted" if part == "mask_image" else "the region is"
        allowed = f"a picture that is white where {what}; this one is black everywhere"
        raise InvalidRequestError([FieldError(field=part, value="a black picture", allowed=allowed)])
    with Image.open(BytesIO(png), formats=["PNG"]) as image:
        return image.copy()
