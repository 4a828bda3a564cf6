"""Mask pictures, as the service needs them: to count predictions, and to refuse those that are empty."""

from collections.abc import Mapping
from io import BytesIO
from math import ceil
from typing import Final, get_args

from PIL import Image

from api_schemas.errors import FieldError
from api_schemas.generation import PicturePart
from api_schemas.regions import MaskPart, RegionMask
from service.errors import InvalidRequestError

_SIDE_PX: Final = 1024  # of the longest side: predictions are counted by tiles, which are larger than a pixel
_BLACK: Final = 3  # of 255, where a mask begins to count
_PARTS: Final[tuple[MaskPart, ...]] = ("mask_image", *get_args(RegionMask))


def read_masks(pictures: Mapping[PicturePart, bytes]) -> dict[MaskPart, Image.Image]:
    """The masks among pictures that the decoder has written, reduced.

    Raises:
        InvalidRequestError: one is black all over.
    """
    return {part: _read(part, pictures[part]) for part in _PARTS if part in pictures}


def _read(part: MaskPart, png: bytes) -> Image.Image:
    with Image.open(BytesIO(png), formats=["PNG"]) as image:
        grey = image.convert("L")
    if grey.histogram()[_BLACK:] == [0] * (256 - _BLACK):
        allowed = "a picture that is white where the region is, or what is to be inpainted"
        raise InvalidRequestError([FieldError(field=part, value="a black picture", allowed=allowed)])
    return grey.reduce(ceil(max(grey.size) / _SIDE_PX))
