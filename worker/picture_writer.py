"""From the finished rows to the picture as clients download it, and its pyramid."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pyvips

from api_schemas.generation import OutputFormat
from api_schemas.layout import PYRAMID_OVERLAP_PX, PYRAMID_TILE_PX
from provenance.source_types import SourceType
from worker.alpha import find_most
from worker.colors import ColorFix
from worker.disk_faults import WORK_FOLDER, find_disk_fault
from worker.metadata import PictureMetadata, exif_block, png_chunks, xmp_packet
from worker.png_file import write_png

_SAVERS: dict[OutputFormat, str] = {
    "jpeg": ".jpg[Q=92,keep=icc:exif:xmp]",
    "webp": ".webp[Q=90,keep=icc:exif:xmp]",
    "tiff": ".tif[compression=deflate,predictor=horizontal,tile=true,resunit=inch,keep=icc:xmp]",
}
_CLASSIC_TIFF_BYTES = 4_000_000_000  # less than 2**32: what deflate cannot compress becomes a little larger
_MM_PER_INCH = 25.4
SUFFIXES: dict[OutputFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tif"}
MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "tiff": "image/tiff",
}


class PictureWriter:
    """Writes picture and pyramid from one BigTIFF; `stop` may be called from another thread.

    Args:
        colors: that its rows are corrected by.
        open_alpha: one band of alpha for them, or None.
        mark: what is done to them before that.
        source_type: that the file tells.
    """

    def __init__(
        self,
        rows: Path,
        dpi: int,
        colors: ColorFix | None = None,
        open_alpha: Callable[[], pyvips.Image | None] = lambda: None,
        mark: Callable[[pyvips.Image], pyvips.Image] = lambda rows: rows,
        source_type: SourceType = "trainedAlgorithmicMedia",
    ) -> None:
        self._rows, self._dpi = rows, dpi
        self._colors, self._open_alpha = colors, open_alpha
        self._mark = mark
        self._source_type: SourceType = source_type
        self._stopped = Event()

    def stop(self) -> None:
        """End at the next row; the running call raises pyvips.Error."""
        self._stopped.set()

    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def write_picture(
        self,
        path: Path,
        kind: OutputFormat,
        metadata: PictureMetadata | None,
        *,
        lossless: bool = False,
        quality: int | None = None,
    ) -> None:
        """Write the picture as a client downloads it: sRGB, as many bits as its rows have.

        Args:
            lossless: a WebP too, since a part of it is another picture's.
            quality: of JPEG and WebP, 1 to 100; None: the usual one.

        Raises:
            ResourceError: the work folder is full or cannot be written.
        """
        image = self._open()
        profile: bytes = pyvips.Operation.call("profile_load", "srgb")
        try:
            if kind == "png":
                write_png(image, path, self._dpi, profile, png_chunks(metadata, self._source_type))
            else:
                image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
                _set_blob(image, "icc-profile-data", profile)
                _set_blob(image, "xmp-data", xmp_packet(metadata, self._source_type))
                _write_with_blobs(image, path, kind, metadata, lossless, quality)
        except (pyvips.Error, OSError) as error:
            raise _translate(error) from error

    def write_pyramid(self, base: Path) -> None:
        """Write `base`.dzi and `base`_files/; what is transparent shows white.

        Raises:
            ResourceError: the work folder is full or cannot be written.
        """
        image = self._open(flat=True)  # it must outlive the call, which signals its progress
        try:
            image.colourspace("srgb").dzsave(  # 16 bits become 8
                str(base),
                tile_size=PYRAMID_TILE_PX,
                overlap=PYRAMID_OVERLAP_PX,
                suffix=".jpg[Q=88,keep=none]",
            )
        except pyvips.Error as error:
            raise _translate(error) from error

    def _open(self, *, flat: bool = False) -> pyvips.Image:
        """All of it as it is stored, from the top.

        Args:
            flat: without alpha.
        """
        per_mm = self._dpi / _MM_PER_INCH
        image = pyvips.Image.new_from_file(str(self._rows), access="sequential")
        if self._colors is not None:
            image = _correct(image, self._colors)
        image = self._mark(image)
        alpha = self._open_alpha()
        if alpha is not None:
            image = image.bandjoin(alpha)
        if alpha is not None and flat:
            image = image.flatten(background=find_most(image))
        image = image.copy(xres=per_mm, yres=per_mm)
        image.set_progress(True)
        image.signal_connect("eval", self._end_if_stopped)
        return image

    def _end_if_stopped(self, image: pyvips.Image, progress: object) -> None:
        if self._stopped.is_set():
            image.set_kill(True)


def _correct(image: pyvips.Image, colors: ColorFix) -> pyvips.Image:
    table = colors.tabulate(8 if image.format == "uchar" else 16)
    levels = pyvips.Image.new_from_memory(table.tobytes(), len(table) // 3, 1, 3, image.format)
    return image.maplut(levels).copy(interpretation=image.interpretation)


def _write_with_blobs(
    image: pyvips.Image,
    path: Path,
    kind: OutputFormat,
    metadata: PictureMetadata | None,
    lossless: bool,
    quality: int | None,
) -> None:
    if kind in ("jpeg", "webp"):
        _set_blob(image, "exif-data", exif_block(metadata))
    options: dict[str, object] = {"bigtiff": True} if kind == "tiff" and needs_bigtiff(image) else {}
    if quality is not None:
        options["Q"] = quality
    if kind == "webp" and lossless:
        options = {"lossless": True, "exact": True}
    image.write_to_file(f"{path}{_SAVERS[kind].removeprefix(path.suffix)}", **options)


def needs_bigtiff(image: pyvips.Image) -> bool:
    """Whether a classic TIFF, with offsets of 32 bits, may be too small; many programs open no BigTIFF."""
    sample_bytes = 1 if image.format == "uchar" else 2
    return image.width * image.height * image.bands * sample_bytes > _CLASSIC_TIFF_BYTES


def _set_blob(image: pyvips.Image, name: str, blob: bytes) -> None:
    # pyvips' own types leave out bytes, which is what a blob is.
    image.set_type(pyvips.GValue.blob_type, name, blob)  # pyright: ignore[reportArgumentType]


def _translate(error: Exception) -> Exception:
    """libvips passes on the system's message only."""
    return find_disk_fault(error, WORK_FOLDER) or error
