"""`python -m service.picture_decoder MEGAPIXELS MEMORY_BYTES CPU_S`: an untrusted picture in, a clean PNG out.

It has no more memory and time than it was given, whatever the file claims to be: decoders are where
malformed files do harm. Exit code 1: refused, with what is allowed on standard error.
"""

import resource
import sys
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from api_schemas.generation import MAX_SIDE_PX

_FORMATS = ("PNG", "JPEG", "WEBP")


def main() -> int:
    megapixels, memory_bytes, cpu_s = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    Image.MAX_IMAGE_PIXELS = None  # we say it ourselves, before anything is decoded
    try:
        sys.stdout.buffer.write(clean(sys.stdin.buffer.read(), megapixels))
    except ValueError as error:
        sys.stderr.write(str(error))
        return 1
    except MemoryError:
        sys.stderr.write("a picture that can be decoded in the memory that the service gives it")
        return 1
    return 0


def clean(file: bytes, megapixels: float) -> bytes:
    """Decode and encode again: upright, RGB, 8 bits, and nothing but pixels.

    Raises:
        ValueError: refused; says what is allowed.
    """
    try:
        with Image.open(BytesIO(file), formats=_FORMATS) as image:
            _check_size(image, megapixels)
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError("a PNG, JPEG or WebP picture") from error
    except (OSError, SyntaxError) as error:  # Pillow's words for a broken file
        raise ValueError(f"a whole picture; this one is broken ({error})") from error
    encoded = BytesIO()
    _to_rgb(upright).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _check_size(image: Image.Image, megapixels: float) -> None:
    width_px, height_px = image.size
    if max(image.size) > MAX_SIDE_PX or width_px * height_px > megapixels * 1e6:
        raise ValueError(
            f"at most {megapixels:g} megapixels and {MAX_SIDE_PX} px a side; this one has {width_px}x{height_px} px"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, as depth maps have; Pillow would clip them
        image = image.convert("I").point(lambda level: level / 256).convert("L")
    # What is transparent shows nothing, whatever colour hides there.
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())  # without the file's metadata


if __name__ == "__main__":
    sys.exit(main())
