"""Which files of pictures this installation reads."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Final

from PIL import Image, features


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """The names of a format: for people, in Pillow and in HTTP."""

    name: str
    plugin: str
    media_type: str


_ALWAYS: Final = (
    PictureFormat("PNG", "PNG", "image/png"),
    PictureFormat("JPEG", "JPEG", "image/jpeg"),
    PictureFormat("WebP", "WEBP", "image/webp"),
    PictureFormat("TIFF", "TIFF", "image/tiff"),
)
_AVIF: Final = PictureFormat("AVIF", "AVIF", "image/avif")
_HEIC: Final = PictureFormat("HEIC", "HEIF", "image/heic")
# ISO/IEC 23008-12, annex B: HEVC in HEIF; and HEIF whose first brand names no coding.
_HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@cache
def readable_formats() -> tuple[PictureFormat, ...]:
    """AVIF where Pillow was built with it, HEIC where `pillow_heif` is installed."""
    avif = (_AVIF,) if features.check("avif") else ()
    heic = (_HEIC,) if find_spec("pillow_heif") else ()
    return (*_ALWAYS, *avif, *heic)


def name_formats() -> str:
    """`PNG, JPEG or WebP`, as a sentence has it."""
    *names, last = [each.name for each in readable_formats()]
    return f"{', '.join(names)} or {last}"


def explain_refusal(file: bytes) -> str:
    """What is allowed in place of a file that Pillow cannot open."""
    allowed = f"a {name_formats()} picture"
    is_heic = file[4:8] == b"ftyp" and file[8:12] in _HEIC_BRANDS
    if is_heic and _HEIC not in readable_formats():
        return f"{allowed}; HEIC is not readable by this installation"
    for each in readable_formats():
        _, accepts = Image.OPEN[each.plugin]
        if accepts is not None and accepts(file[:16]) is True:
            return f"{allowed}; this {each.name} has a broken header, or pixels of a kind that is not read"
    return allowed
