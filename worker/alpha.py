"""Alpha of a source, put back into the picture that is made of it, and where sources lie. The worker runs it: no numpy."""

from pathlib import Path

import pyvips

from api_schemas.generation import BitDepth, ResolvedRequest
from api_schemas.source import Placement, Size, place_source
from worker.scaling import scale_to

_DEEPER = 257  # 255 of 8 bits is 65,535 of 16


def open_alpha(request: ResolvedRequest, source: Path | None) -> pyvips.Image | None:
    """The alpha of the finished picture, one band of as many bits, read from the top; None: it has none.

    That is the source's, scaled and placed as its pixels are; what the source leaves free is opaque.
    """
    if source is None or not keeps_alpha(request):
        return None
    image = pyvips.Image.new_from_file(str(source), access="sequential")
    if not image.hasalpha():
        return None
    picture, own = (request.width_px, request.height_px), (image.width, image.height)
    assert request.source is not None
    place = (
        place_source(request.source, own, picture) if request.upscale is None else Placement(0, 0, *picture)
    )
    alpha = image.extract_band(image.bands - 1)
    alpha = scale_to(alpha, place.width, place.height).copy(
        interpretation="grey16" if alpha.format == "ushort" else "b-w"
    )
    return set_bits(put_on_canvas(alpha, place, picture, opaque=True), request.bit_depth)


def keeps_alpha(request: ResolvedRequest) -> bool:
    """Whether the picture shows what its source hides; a JPEG is laid on white."""
    return request.source is not None and request.output_format != "jpeg"


def put_on_canvas(
    image: pyvips.Image, place: Placement, canvas: Size, *, opaque: bool = False
) -> pyvips.Image:
    """The canvas' part of it, where it ends its edges continued, or alpha's most."""
    left, top = max(-place.left, 0), max(-place.top, 0)
    right, bottom = min(canvas[0] - place.left, place.width), min(canvas[1] - place.top, place.height)
    part = image.crop(left, top, right - left, bottom - top)
    extend = "background" if opaque else "copy"
    return part.embed(
        max(place.left, 0), max(place.top, 0), *canvas, extend=extend, background=find_most(image)
    )


def set_bits(image: pyvips.Image, bit_depth: BitDepth) -> pyvips.Image:
    if bit_depth == 8:
        return image if image.format == "uchar" else (image / _DEEPER).rint().cast("uchar")
    return image if image.format == "ushort" else (image * _DEEPER).cast("ushort")


def find_most(image: pyvips.Image) -> list[float]:
    """White's level, and that of what is opaque."""
    return [255 if image.format == "uchar" else 65_535]
