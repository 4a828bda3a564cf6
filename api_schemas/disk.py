"""What a job needs on disk, estimated before it starts."""

from dataclasses import dataclass
from math import ceil
from typing import Final

from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest, OutputFormat, ResolvedRequest
from api_schemas.layout import PYRAMID_TILE_PX

# Bytes per pixel of pure noise, which compresses worst; of lossless formats, in parts of the plain pixels.
_LOSSY: Final[dict[OutputFormat, float]] = {"jpeg": 2.1, "webp": 1.0}
_LOSSLESS: Final = 1.01
_PYRAMID: Final = 1.2
_LATENTS_PER_CHECKPOINT: Final = 4  # the latent, and what multistep schedulers remember
_CHECKPOINTS: Final = 2  # the newest, and the one that is being written
_OTHER_FILES: Final = 32
_SLACK_BYTES: Final = 1 << 20  # headers, and blocks that small files do not fill


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """At the most: bytes of a worker's work folder while the job runs, and of the store, and files in either."""

    work_bytes: int
    store_bytes: int
    files: int = 0


def estimate_disk(request: GenerationRequest, card: ModelCard) -> DiskNeed:
    """Both needs, from the sizes of the files that a job writes."""
    width, height = card.fit_canvas(request)
    pixels = request.width_px * request.height_px
    rows = pixels * 3 * request.bit_depth // 8
    stored = rows * 4 // 3 if request.source else rows  # a source may bring alpha
    latent = card.latent_channels * 4 * width * height / card.vae_scale**2
    lossy = _LOSSY.get(request.output_format)
    if request.output_format == "webp" and request.source:  # lossless where a part of the source stays
        lossy = None
    picture = pixels * lossy if lossy else stored * _LOSSLESS
    kept = picture + _PYRAMID * pixels + (1 + _LATENTS_PER_CHECKPOINT * _CHECKPOINTS) * latent
    sent = _count_input_bytes(request)
    begun = _count_begun_bytes(request, rows)
    return DiskNeed(
        int(rows + begun + kept + sent) + _SLACK_BYTES,
        int(kept + sent) + _SLACK_BYTES,
        _count_tiles(request.width_px, request.height_px) + _OTHER_FILES,
    )


def _count_begun_bytes(request: GenerationRequest, rows: int) -> int:
    """What a canvas begins with: the picture of another job as it is stored, its rows, and those of the mask, in three forms."""
    if request.source is None:
        return 0
    masks = 0 if request.upscale else 3 * request.width_px * request.height_px
    fetched = 2 * rows if request.source.job else 0  # it may be deeper than this one, or have alpha
    return fetched + rows + masks


def _count_tiles(width_px: int, height_px: int) -> int:
    """Files and folders of the deep zoom, each level half as large as the last."""
    across, down = ceil(width_px / PYRAMID_TILE_PX), ceil(height_px / PYRAMID_TILE_PX)
    return (
        1
        + across * down
        + (0 if width_px == height_px == 1 else _count_tiles(-(-width_px // 2), -(-height_px // 2)))
    )


def _count_input_bytes(request: GenerationRequest) -> int:
    """Of the pictures that came with it, which are stored as PNG, a source with its alpha."""
    pictures = request.pictures.values() if isinstance(request, ResolvedRequest) else ()
    return sum(4 * picture.width_px * picture.height_px for picture in pictures)


def describe_bytes(count: int) -> str:
    """
    >>> describe_bytes(50_000), describe_bytes(300 << 20), describe_bytes(3 << 30)
    ('48.8 KiB', '300.0 MiB', '3.0 GiB')
    """
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB") if count >= 2**20 else (2**10, "KiB")
    return f"{count / unit:.1f} {name}"
