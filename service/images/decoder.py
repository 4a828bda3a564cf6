"""`python -m service.images.decoder MEGAPIXELS MEMORY_BYTES CPU_S TURN [alpha | MASK [by-alpha]]`: decodes an untrusted picture to a PNG.

It has no more memory and time than it was given, whatever the file claims to be: decoders are where
malformed files do harm. TURN is the descriptor of a file by which large pictures wait for one another,
MASK that of a file for the summary of a mask; with `alpha` the picture's alpha is kept, with `by-alpha` a mask is white
where it is transparent, and black elsewhere. Exit code 1: refused; what is allowed is the last line on
standard error. Exit code 2: the result cannot be written.
"""

import fcntl
import os
import resource
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import IO, Literal

import numpy as np
from PIL import AvifImagePlugin, Image, ImageChops, UnidentifiedImageError
from PIL.ExifTags import Base

from api_schemas.sizes import MAX_SIDE_PX
from service.images.colors import Declared, HighRangeError, to_srgb
from service.images.containers import read_codes, trim_png
from service.images.formats import explain_refusal, readable_formats
from service.images.mask_summary import MaskSummary
from service.images.png_rows import PngRows

Alpha = Literal["kept", "black", "marks"]
_LARGE_PIXELS = 16_000_000  # several smaller ones may be in memory at the same time
_STRIP_PIXELS = 1_000_000
# By EXIF's orientation: what undoes it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Whose first row is a column of the file, and whose first row is the last one of the file.
_LAID_DOWN = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_FROM_THE_END = (
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


class RefusedError(Exception):
    """The picture is rejected; the message is what is allowed."""


def main() -> int:
    megapixels, memory_bytes, cpu_s, turn = float(sys.argv[1]), *map(int, sys.argv[2:5])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    _set_up_plugins()
    asked = sys.argv[5] if len(sys.argv) > 5 else ""
    mask = os.fdopen(int(asked), "wb") if asked.isdigit() else None
    alpha: Alpha = "kept" if asked == "alpha" else "marks" if "by-alpha" in sys.argv else "black"
    try:
        clean(sys.stdin.buffer.read(), megapixels, sys.stdout.buffer, mask, turn, alpha=alpha)
        sys.stdout.buffer.flush()
    except RefusedError as error:
        sys.stderr.write(f"\n{error}")
        return 1
    except MemoryError:
        sys.stderr.write("\na picture that can be decoded in the memory that the service gives it")
        return 1
    except OSError as error:
        sys.stderr.write(f"\n{error.strerror}")
        return 2
    return 0


def _set_up_plugins() -> None:
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # the size is checked below, before anything is decoded
    # Every thread would use part of the memory and time limits.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    if any(each.plugin == "HEIF" for each in readable_formats()):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.options.DECODE_THREADS = 1  # pyright: ignore[reportUnknownMemberType]
        pillow_heif.register_heif_opener()  # pyright: ignore[reportUnknownMemberType]


def clean(
    file: bytes,
    megapixels: float,
    target: IO[bytes],
    mask: IO[bytes] | None = None,
    turn: int | None = None,
    *,
    alpha: Alpha = "black",
) -> None:
    """Decode and encode again: upright, sRGB, 8 bits, and nothing but pixels.

    Args:
        mask: gets the summary of a mask.
        turn: descriptor of a file that is locked while a large picture is in memory.
        alpha: kept; or what is transparent is black; or that is white, and all else black.

    Raises:
        RefusedError: with what is allowed.
        OSError: the target cannot be written.
    """
    with _in_words(file):
        picture = _open(file, megapixels, turn)
    width_px, height_px = picture.size
    if not picture.has_alpha:
        _require_no_marks(alpha)
        alpha = "black"
    png, summary = (
        PngRows(target, width_px, height_px, alpha=alpha == "kept"),
        MaskSummary(width_px, height_px),
    )
    rows = summary.factor * max(1, _STRIP_PIXELS // width_px // summary.factor)
    for top_px in range(0, height_px, rows):
        with _in_words(file):
            strip = picture.cut(top_px, min(top_px + rows, height_px), alpha=alpha)
        png.add(strip)
        if mask is not None:
            summary.add(strip)
    png.finish()
    if mask is not None:
        if summary.is_black:
            _require_no_marks(alpha)
        summary.write(mask)
        mask.flush()


def _require_no_marks(alpha: Alpha) -> None:
    if alpha == "marks":
        raise RefusedError("a picture that is transparent where it is to be painted; this one is opaque")


@contextmanager
def _in_words(file: bytes) -> Generator[None]:
    """Whatever is wrong with the file is said as what is allowed."""
    try:
        yield
    except (RefusedError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise RefusedError(explain_refusal(file)) from error
    except HighRangeError as error:
        raise RefusedError(f"a picture of standard dynamic range; this one is {error}") from error
    except Exception as error:  # a broken file can raise anything from Pillow's plugins
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise RefusedError(f"a whole picture; this one is broken ({words})") from error


@dataclass(frozen=True, slots=True)
class _Picture:
    """Pixels as the file has them; only strips of it are upright and sRGB."""

    image: Image.Image
    turn: Image.Transpose | None
    declared: Declared

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""
        width_px, height_px = self.image.size
        return (height_px, width_px) if self.turn in _LAID_DOWN else (width_px, height_px)

    @property
    def has_alpha(self) -> bool:
        return _split_alpha(self.image.crop((0, 0, 1, 1)))[1] is not None

    def cut(self, top_px: int, bottom_px: int, *, alpha: Alpha) -> Image.Image:
        """Rows of the upright picture, in sRGB, as RGB before black, or with its alpha; or what that marks, as RGB."""
        strip = self.image.crop(self._find(top_px, bottom_px))
        strip, shown = _split_alpha(strip if self.turn is None else strip.transpose(self.turn))
        strip = to_srgb(strip, self.declared)
        if shown is None:
            return strip
        if alpha == "marks":
            return ImageChops.invert(shown).convert("RGB")
        if alpha == "kept":
            strip.putalpha(shown)
            return strip
        # What is transparent shows nothing, whatever colour hides there.
        return Image.composite(strip, Image.new("RGB", strip.size), shown)

    def _find(self, top_px: int, bottom_px: int) -> tuple[int, int, int, int]:
        """The box (left, top, right, bottom) that holds these rows in the file."""
        width_px, height_px = self.image.size
        if self.turn in _FROM_THE_END:
            length_px = width_px if self.turn in _LAID_DOWN else height_px
            top_px, bottom_px = length_px - bottom_px, length_px - top_px
        return (
            (top_px, 0, bottom_px, height_px) if self.turn in _LAID_DOWN else (0, top_px, width_px, bottom_px)
        )


def _open(file: bytes, megapixels: float, turn: int | None) -> _Picture:
    trimmed, declared = trim_png(file)
    with Image.open(BytesIO(trimmed), formats=[each.plugin for each in readable_formats()]) as image:
        _check_size(image, megapixels)
        if turn is not None and image.width * image.height > _LARGE_PIXELS:
            fcntl.lockf(turn, fcntl.LOCK_EX)  # until this process ends
        image.load()
        if image.format != "PNG":
            icc = image.info.get("icc_profile")
            declared = replace(declared, icc=icc, codes=None if icc else read_codes(file))
        return _Picture(image, _find_turn(image), declared)


def _check_size(image: Image.Image, megapixels: float) -> None:
    width_px, height_px = image.size
    if max(image.size) > MAX_SIDE_PX or width_px * height_px > megapixels * 1e6:
        raise RefusedError(
            f"at most {megapixels:g} megapixels and {MAX_SIDE_PX} px a side; this one has {width_px}x{height_px} px"
        )


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    """A broken EXIF block turns nothing; Pillow's own function would refuse the picture for it."""
    try:
        return _TURNS.get(image.getexif().get(Base.Orientation, 1))
    except Exception:
        return None


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Into L, RGB or CMYK, 8 bits, and its alpha channel, if there is one."""
    if image.mode.startswith("I;16"):
        return _halve_grey(image)
    if image.mode in ("I", "F"):
        raise RefusedError("whole numbers of 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        return image.convert(image.mode[:-1]), image.getchannel("A")
    plain = {"1": "L", "L": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    return image.convert(plain), None


def _halve_grey(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """16 bits of grey, as depth maps have; Pillow would clip them."""
    levels, hidden = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    if not isinstance(hidden, int):
        return grey, None
    return grey, Image.fromarray(np.where(levels == hidden, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
