"""Limits on sizes, tiles and steps that come from the model's card."""

from collections.abc import Iterator

from api_schemas.catalog import ModelCard
from api_schemas.errors import FieldError
from api_schemas.generation import GenerationRequest
from service.stages import find_stage_misfits


def find_misfits(request: GenerationRequest, card: ModelCard) -> list[FieldError]:
    """Every value that this model does not support, with those that it does."""
    return [
        *_check_sides(request, card),
        *_check_steps(request, card),
        *_check_tiles(request, card),
        *find_stage_misfits(request, card),
    ]


def _check_sides(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    for field, side_px, axis in (("width_px", request.width_px, "x"), ("height_px", request.height_px, "y")):
        lowest, highest = card.min_side_px, card.max_side_px
        if request.seamless in (axis, "both") and side_px not in (sides := card.nearest_sides(side_px)):
            nearest = " or ".join(map(str, dict.fromkeys(sides)))
            allowed = f"multiples of {card.alignment_px} from {lowest} to {highest} where it is seamless; the nearest: {nearest}"
            yield FieldError(field=field, value=str(side_px), allowed=allowed)
        elif not lowest <= side_px <= highest:
            yield FieldError(field=field, value=str(side_px), allowed=f"{lowest} to {highest}")


def _check_steps(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    if request.steps is not None and not card.min_steps <= request.steps <= card.max_steps:
        yield FieldError(
            field="steps",
            value=str(request.steps),
            allowed=f"{card.min_steps} to {card.max_steps} for model {card.name}",
        )


def _check_tiles(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    tile_px, overlap_px = request.advanced.tile_size_px, request.advanced.overlap_px
    if tile_px is not None and tile_px % card.alignment_px:
        yield _misaligned("advanced.tile_size_px", tile_px, card.alignment_px)
    if tile_px is not None and tile_px > card.max_tile_size_px:
        yield FieldError(
            field="advanced.tile_size_px",
            value=str(tile_px),
            allowed=f"at most {card.max_tile_size_px} for model {card.name}",
        )
    if overlap_px is not None and overlap_px % card.vae_scale:
        yield _misaligned("advanced.overlap_px", overlap_px, card.vae_scale)
    full_tile_px = tile_px or card.native_size_px
    # Above three quarters a pixel is predicted more than 16 times a step, and the stride may round to 0.
    most_px = full_tile_px * 3 // 4
    if overlap_px is not None and overlap_px > most_px:
        yield FieldError(
            field="advanced.overlap_px",
            value=str(overlap_px),
            allowed=f"at most {most_px}, three quarters of a tile of {full_tile_px} px",
        )


def _misaligned(field: str, value: int, unit: int) -> FieldError:
    below = value // unit * unit
    return FieldError(
        field=field,
        value=str(value),
        allowed=f"multiples of {unit}; the nearest are {below} or {below + unit}",
    )
