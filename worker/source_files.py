"""The request's source as files of plain rows, at the size of the canvas that begins with it.

Pictures are read from the top in strips by libvips, and never held whole.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyvips

from api_schemas.catalog import ModelCard
from api_schemas.generation import BitDepth, PicturePart, ResolvedRequest
from api_schemas.region_masks import fill_polygon
from api_schemas.source import Placement, Size, SourceMask, place_source
from api_schemas.stages import fit_source, lay_stages
from worker.alpha import find_most, keeps_alpha, put_on_canvas, set_bits
from worker.color_sums import Levels
from worker.scaling import scale_to

_STRIP = 256  # rows that are read or drawn at a time
_SMALL = 256  # sides of the picture whose colours show behind what is transparent
Colors = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """What a job begins with. All files are in the job's work folder.

    Args:
        pixels: RGB, (height, width, 3), of `bit_depth`; what of the canvas the source leaves free continues its edge.
        size: (height, width) of that canvas, pixels; `scale` of them for a latent pixel.
        shown: what of it the picture covers, from the top left corner on.
        levels: what is inpainted, (height, width), 0 to 255; None: all of it.
        state: kept final state of the picture, where the canvas may begin with it.
        smaller: the pixels alone, reduced to the canvas of each stage before the last.
    """

    pixels: Path
    size: tuple[int, int]
    shown: tuple[int, int]
    scale: int
    bit_depth: BitDepth
    levels: Path | None = None
    state: Path | None = None
    smaller: tuple["SourceFiles", ...] = ()

    def open_pixels(self) -> Levels:
        """(height, width, 3), mapped: what is read of it counts as memory until it is dropped."""
        kind = np.uint8 if self.bit_depth == 8 else np.uint16
        return np.memmap(self.pixels, kind, "r", shape=(*self.size, 3))

    def read_strips(self) -> Iterator[tuple[int, Levels]]:
        """(top, rows) of what the picture covers."""
        height, width = self.shown
        for top in range(0, height, _STRIP):
            yield top, np.array(self.open_pixels()[top : min(top + _STRIP, height), :width])

    def open_scaled(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """(height, width, 3) of that size, 8 bits, mapped; made when it is first asked for, by whichever rank that is."""
        is_own = size == self.size and self.bit_depth == 8
        path = self.pixels if is_own else self.pixels.with_suffix(f".{size[1]}x{size[0]}.8")
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}")
            (height, width), kind = self.size, "uchar" if self.bit_depth == 8 else "ushort"
            image = pyvips.Image.rawload(str(self.pixels), width, height, 3, format=kind)
            set_bits(scale_to(image, size[1], size[0]), 8).rawsave(str(partial))
            partial.replace(path)
        return np.memmap(path, np.uint8, "c", shape=(*size, 3))  # PyTorch wants to write

    def open_levels(self) -> npt.NDArray[np.uint8]:
        """(height, width), mapped; only where `levels` is a file."""
        assert self.levels is not None
        return np.memmap(self.levels, np.uint8, "r", shape=self.size)


def write_source(
    request: ResolvedRequest, card: ModelCard, inputs: Mapping[PicturePart, Path], folder: Path
) -> SourceFiles:
    """Scale and place the source, and draw its mask.

    Args:
        inputs: pictures of the request; `source_image` may be any that a worker has written.
    """
    assert request.source is not None
    assert request.source_px is not None
    canvas = fit_source(card, request)
    assert canvas is not None
    exact = _fit_picture(request, card, canvas)
    picture = ceil(exact[0]), ceil(exact[1])
    place = Placement(0, 0, *picture)  # enlarged as a whole
    if request.upscale is None:
        place = place_source(request.source, request.source_px, picture)
        exact = place.width, place.height
    pixels, levels = folder / "source.rows", folder / "mask.rows"
    _write_pixels(request, inputs["source_image"], exact, place, canvas, pixels)
    masked = request.mask is not None or not place.covers(picture)
    if masked:
        _write_levels(request, inputs.get("mask_image"), place, picture, canvas, levels)
    size, shown = (canvas[1], canvas[0]), (picture[1], picture[0])
    files = SourceFiles(pixels, size, shown, card.vae_scale, request.bit_depth, levels if masked else None)
    sizes = (
        [] if request.upscale else [(stage.width_px, stage.height_px) for stage in lay_stages(card, request)]
    )
    return replace(files, smaller=tuple(_reduce(files, size) for size in sizes[:-1]))


def _reduce(files: SourceFiles, canvas: Size) -> SourceFiles:
    (height, width), path = files.size, files.pixels.with_suffix(f".{canvas[0]}x{canvas[1]}")
    kind = "uchar" if files.bit_depth == 8 else "ushort"
    image = pyvips.Image.rawload(str(files.pixels), width, height, 3, format=kind)
    scale_to(image, *canvas).rawsave(str(path))
    size = canvas[1], canvas[0]
    return SourceFiles(path, size, size, files.scale, files.bit_depth)


def _fit_picture(request: ResolvedRequest, card: ModelCard, canvas: Size) -> tuple[float, float]:
    """(width, height) of what the picture covers of a canvas, which is as much as of the largest: to the next pixel, what is
    made would drift from its source."""
    whole = card.fit_canvas(request)
    return request.width_px * canvas[0] / whole[0], request.height_px * canvas[1] / whole[1]


def _write_pixels(
    request: ResolvedRequest,
    source: Path,
    size: tuple[float, float],
    place: Placement,
    canvas: Size,
    path: Path,
) -> None:
    image = pyvips.Image.new_from_file(str(source), access="sequential")
    if image.hasalpha():
        image = _read_hidden(request, source, image)
    image = image.colourspace("rgb16" if image.format == "ushort" else "srgb")
    if (image.width, image.height) != size:
        scale = _scale_with_alpha if image.hasalpha() else scale_to
        image = scale(image, *size)
    if image.hasalpha():
        image = _show_hidden(image, source)
    image = put_on_canvas(image, place, canvas)
    set_bits(image, request.bit_depth).rawsave(str(path))


def _scale_with_alpha(image: pyvips.Image, width: float, height: float) -> pyvips.Image:
    """Colours count as much as they can be seen, in floats: rounded on the way they are two levels darker."""
    seen = scale_to(image.premultiply(), width, height).unpremultiply()
    return seen.rint().cast(image.format).copy(interpretation=image.interpretation)


def _read_hidden(request: ResolvedRequest, source: Path, image: pyvips.Image) -> pyvips.Image:
    """A picture with alpha: on white if that is not kept; of our own, whose colours are whole, the colours alone."""
    if not keeps_alpha(request):
        return image.flatten(background=find_most(image))
    assert request.source is not None
    return image if request.source.job is None else image.extract_band(0, n=image.bands - 1)


def _show_hidden(image: pyvips.Image, source: Path) -> pyvips.Image:
    """The colours without alpha: what cannot be seen continues what can, since it would bleed into it."""
    small = pyvips.Image.thumbnail(str(source), _SMALL).colourspace("srgb").numpy().astype(np.float64)
    colors = _spread(small[..., :3] * small[..., 3:], small[..., 3]).astype(np.uint8)
    fill = pyvips.Image.new_from_array(colors, interpretation="srgb")
    fill = scale_to(fill, image.width, image.height)
    hidden = image.extract_band(3).relational_const("equal", [0])
    return hidden.ifthenelse(fill, image.extract_band(0, n=3))


def _spread(sums: Colors, weights: Colors) -> Colors:
    """Mean colours (h, w, 3), of ever larger areas until they have a weight (Gortler et al., "The Lumigraph", 1996, 4.2).

    Args:
        sums: of colours times weight.
        weights: (h, w).
    """
    means = sums / np.maximum(weights, 1e-9)[..., None]
    if weights.all() or weights.size == 1:
        return means
    larger = _spread(_halve(sums), _halve(weights)).repeat(2, 0).repeat(2, 1)
    return np.where(weights[..., None] > 0, means, larger[: len(means), : len(means[0])])


def _halve(values: Colors) -> Colors:
    """Sums of every 2 x 2."""
    height, width = values.shape[:2]
    values = np.pad(values, [(0, height % 2), (0, width % 2), (0, 0)][: values.ndim])
    return values[0::2, 0::2] + values[1::2, 0::2] + values[0::2, 1::2] + values[1::2, 1::2]


def _write_levels(
    request: ResolvedRequest, sent: Path | None, place: Placement, picture: Size, canvas: Size, path: Path
) -> None:
    """What the mask shows, softened inwards, and what the source leaves free."""
    assert request.source is not None
    image = _from_strips(
        _draw_free(place, picture, request.source.feather_px), picture, path.with_suffix(".free")
    )
    if request.mask is not None:
        drawn = path.with_suffix(".shape")
        shape = (
            _read_mask(sent, picture, drawn)
            if sent
            else _from_strips(_draw_shape(request.mask, picture), picture, drawn)
        )
        image = image.bandrank(_soften(shape, request.mask.feather_px), index=1)  # the larger of the two
    image.embed(0, 0, *canvas, extend="copy").rawsave(str(path))


def _from_strips(strips: Iterator[npt.NDArray[np.uint8]], size: Size, path: Path) -> pyvips.Image:
    with path.open("wb") as file:
        for strip in strips:
            file.write(strip.tobytes())
    return pyvips.Image.rawload(str(path), *size, 1)


def _draw_free(place: Placement, picture: Size, feather_px: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Strips from the top: 255 beside the source, falling to 0 within `feather_px` of those of its edges that can be seen."""
    beside = _fall(picture[0], place.left, place.left + place.width, feather_px)
    above = _fall(picture[1], place.top, place.top + place.height, feather_px)
    for top in range(0, picture[1], _STRIP):
        yield np.maximum(above[top : top + _STRIP, None], beside[None])


def _fall(length: int, start: int, end: int, feather_px: int) -> npt.NDArray[np.uint8]:
    """Along one axis."""
    inside = np.full(length, length)  # pixels from the nearest edge that can be seen
    if start > 0:
        inside = np.minimum(inside, np.arange(length) - start)
    if end < length:
        inside = np.minimum(inside, end - 1 - np.arange(length))
    return np.clip(255 - 255 * (inside + 1.0) / (feather_px + 1), 0, 255).astype(np.uint8)


def _draw_shape(mask: SourceMask, picture: Size) -> Iterator[npt.NDArray[np.uint8]]:
    """Strips of 0 and 255, from the top."""
    width, height = picture
    for top in range(0, height, _STRIP):
        corners = [(x, y - top) for x, y in mask.list_corners()]
        yield fill_polygon(corners, min(_STRIP, height - top), width)


def _read_mask(sent: Path, picture: Size, path: Path) -> pyvips.Image:
    """Scaled, as rows that can be read more than once."""
    image = pyvips.Image.new_from_file(str(sent), access="sequential").colourspace("b-w").extract_band(0)
    width, height = picture
    scale_to(image, width, height).cast("uchar").rawsave(str(path))
    return pyvips.Image.rawload(str(path), *picture, 1)


def _soften(image: pyvips.Image, feather_px: int) -> pyvips.Image:
    """From 0 at the shape's edge to 255 so far inside, or less far in a shape that is too narrow for it.

    Only around the shape: to fade the whole of an 8192 px picture takes 17 s.
    """
    left, top, width, height = _find_shape(image, feather_px + 1)
    if not feather_px or not width:
        return image
    part, most = image.crop(left, top, width, height), image.max()
    while feather_px:
        soft = _fade(part, feather_px)
        if soft.max() == most:
            return soft.embed(left, top, image.width, image.height)
        feather_px //= 2
    return image


def _find_shape(image: pyvips.Image, margin: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of what is not black, with a margin; of width 0 if all is."""
    found = image.find_trim(threshold=0, background=[0], line_art=True)
    left, top, width, height = (int(each) for each in found)
    right, bottom = min(left + width + margin, image.width), min(top + height + margin, image.height)
    left, top = max(left - margin, 0), max(top - margin, 0)
    return left, top, right - left if width else 0, bottom - top


def _fade(image: pyvips.Image, feather_px: int) -> pyvips.Image:
    """A box mean is above a half only within an edge that is straight; what lies outside stays 0 everywhere."""
    box = pyvips.Image.new_from_array([[1] * (2 * feather_px + 1)], scale=2 * feather_px + 1)
    grown = image.embed(
        feather_px, feather_px, image.width + 2 * feather_px, image.height + 2 * feather_px, extend="copy"
    )
    mean = grown.convsep(box, precision="float").crop(feather_px, feather_px, image.width, image.height)
    inside = ((mean - 127.5) * 2).rint().cast("uchar")
    return inside & (image > 0)
