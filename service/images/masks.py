"""Mask pictures, as the service needs them: to count predictions, and to refuse those that are empty."""

from collections.abc import Mapping
from io import BytesIO
from typing import Final, get_args

from PIL import Image

from api_schemas.errors import FieldError
from api_schemas.generation import PicturePart
from api_schemas.regions import MaskPart
from service.errors import InvalidRequestError

MASK_PARTS: Final[tuple[MaskPart, ...]] = get_args(MaskPart)


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
