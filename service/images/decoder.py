"""`python -m service.images.decoder MEGAPIXELS MEMORY_BYTES CPU_S`: decodes an untrusted picture to a PNG.

It has no more memory and time than it was given, whatever the file claims to be: decoders are where
malformed files do harm. Exit code 1: refused; what is allowed is the last line on standard error.
"""

import resource
import sys
import warnings
from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from PIL.ExifTags import Base

from api_schemas.generation import MAX_SIDE_PX
from service.images.colors import HighRangeError, to_srgb
from service.images.containers import read_codes, trim_png
from service.images.formats import explain_refusal, readable_formats

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


class RefusedError(Exception):
    """The picture is rejected; the message is what is allowed."""


def main() -> int:
    megapixels, memory_bytes, cpu_s = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    _set_up_plugins()
    try:
        sys.stdout.buffer.write(clean(sys.stdin.buffer.read(), megapixels))
    except RefusedError as error:
        sys.stderr.write(f"\n{error}")
        return 1
    except MemoryError:
        sys.stderr.write("\na picture that can be decoded in the memory that the service gives it")
        return 1
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


def clean(file: bytes, megapixels: float) -> bytes:
    """Decode and encode again: upright, sRGB, 8 bits, and nothing but pixels.

    Raises:
        RefusedError: with what is allowed.
    """
    try:
        picture = _decode(file, megapixels)
    except (RefusedError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise RefusedError(explain_refusal(file)) from error
    except HighRangeError as error:
        raise RefusedError(f"a picture of standard dynamic range; this one is {error}") from error
    except Exception as error:  # a broken file can raise anything from Pillow's plugins
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise RefusedError(f"a whole picture; this one is broken ({words})") from error
    encoded = BytesIO()
    picture.save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _decode(file: bytes, megapixels: float) -> Image.Image:
    trimmed, declared = trim_png(file)
    with Image.open(BytesIO(trimmed), formats=[each.plugin for each in readable_formats()]) as image:
        _check_size(image, megapixels)
        image.load()
        if image.format != "PNG":
            icc = image.info.get("icc_profile")
            declared = replace(declared, icc=icc, codes=None if icc else read_codes(file))
        picture, alpha = _split_alpha(_put_upright(image))
    picture = to_srgb(picture, declared)
    if alpha is not None:  # what is transparent shows nothing, whatever colour hides there
        picture = Image.composite(picture, Image.new("RGB", picture.size), alpha)
    picture.info.clear()
    return picture


def _check_size(image: Image.Image, megapixels: float) -> None:
    width_px, height_px = image.size
    if max(image.size) > MAX_SIDE_PX or width_px * height_px > megapixels * 1e6:
        raise RefusedError(
            f"at most {megapixels:g} megapixels and {MAX_SIDE_PX} px a side; this one has {width_px}x{height_px} px"
        )


def _put_upright(image: Image.Image) -> Image.Image:
    """A broken EXIF block turns nothing; Pillow's own function would refuse the picture for it."""
    try:
        turn = _TURNS.get(image.getexif().get(Base.Orientation, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


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
