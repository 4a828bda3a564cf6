"""The stages that a request needs of a model, from the smallest canvas to the largest."""

from dataclasses import replace
from math import ceil

from api_schemas.advanced import ALWAYS_GUIDED
from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest
from api_schemas.layout import (
    Stage,
    StageAttention,
    choose_resampled,
    choose_tiling,
    fit_conductor,
    fit_one_tile,
    lay_sizes,
    split_steps,
    widen_first,
)

# Height of a cascade's first picture, over the native size: taller ones are scenes above one another. And what its width stays at.
_TALLEST, _NARROWEST = 1.5, 0.25
# Img2img strength of stages that enlarge a source, at fidelity 0 and 1.
_FREEST, _MOST_FAITHFUL = 0.6, 0.1


def lay_stages(card: ModelCard, request: GenerationRequest) -> list[Stage]:
    """The stages that this request needs, from the smallest canvas to the largest.

    A resolved request has the same stages as the one that it was made from.
    """
    if request.upscale is not None:
        return _lay_enlarging(card, request, request.upscale)
    whole = card.fit_canvas(request)
    layout, _ = card.choose_layout(request)
    sizes = [whole]
    if layout == "cascade":
        short_px = card.native_size_px * min(1.0, max(_TALLEST * whole[0] / whole[1], _NARROWEST))
        if short_px == card.native_size_px and request.advanced.tile_size_px is None:
            short_px = widen_first(*whole, card.native_size_px, card.cascade.enlarges, card.max_tile_size_px)
        sizes = lay_sizes(*whole, short_px, card.alignment_px, card.cascade.enlarges)
    if request.source is not None:
        return _lay_from_source(card, request, sizes)
    return [_lay_stage(card, request, index, size) for index, size in enumerate(sizes)]


def _lay_from_source(
    card: ModelCard, request: GenerationRequest, sizes: list[tuple[int, int]]
) -> list[Stage]:
    """Each begins at the tail of its schedule, with the source reduced to its size."""
    strength = 1.0 if request.strength is None else request.strength
    run, skipped = split_steps(card.choose_steps(request), strength)
    if len(sizes) == 1 or run == 0:  # where the first changes nothing, neither do others
        return [_make_stage(card, request, sizes[-1], run, skipped, given=sizes[-1])]
    first, *later = (_lay_stage(card, request, index, size) for index, size in enumerate(sizes))
    again = choose_resampled(run, skipped)
    first = replace(first, steps=run, skipped=skipped, resampled=again)
    stages = [first, *(_cut(stage, strength) for stage in later)]
    return [replace(stage, given=size) for stage, size in zip(stages, sizes, strict=True)]


def _lay_enlarging(card: ModelCard, request: GenerationRequest, times: int) -> list[Stage]:
    """Those that enlarge the source to the picture's size."""
    whole = card.fit_canvas(request)
    _, *larger = lay_sizes(*whole, min(whole) / times, card.alignment_px, card.cascade.enlarges)
    sizes = larger or [whole]  # a source may be so small that its canvas is as large
    stages = [_lay_stage(card, request, index, size) for index, size in enumerate(sizes)]
    return [replace(stages[0], given=sizes[0]), *stages[1:]]


def fit_source(card: ModelCard, request: GenerationRequest) -> tuple[int, int] | None:
    """(width, height) of the canvas that the source is scaled to: the first it is enlarged to, else the picture's."""
    stages = lay_stages(card, request)
    return (stages[-1] if request.upscale is None else stages[0]).given


def _lay_stage(card: ModelCard, request: GenerationRequest, index: int, size: tuple[int, int]) -> Stage:
    """The stage `index`, counted from 0; to enlarge a source is to begin with a cascade's second one."""
    level = index if request.upscale is None else index + 1
    asked, conditioned = request.advanced.stage(index), level > 0 and card.cascade.conditioned
    share = card.cascade.share(level) / card.cascade.share(level - index)
    steps = asked.steps or max(1, round(card.choose_steps(request) * share))
    strength = 1.0 if level == 0 or conditioned else asked.strength or _choose_strength(card, request)
    tile_px = request.advanced.tile_size_px
    if tile_px is None and level == 0 and card.choose_layout(request)[0] == "cascade":
        tile_px = fit_one_tile(*size, card.native_size_px, card.max_tile_size_px)
    skipped = ceil(steps / strength - 1e-6) - steps
    return _make_stage(card, request, size, steps, skipped, tile_px, conditioned=conditioned)


def _choose_strength(card: ModelCard, request: GenerationRequest) -> float:
    """Of a stage that starts from a picture; when a source is enlarged, what its fidelity leaves open."""
    if request.upscale is None:
        return card.cascade.strength
    return _FREEST + (_MOST_FAITHFUL - _FREEST) * request.chosen_fidelity


def _make_stage(
    card: ModelCard,
    request: GenerationRequest,
    size: tuple[int, int],
    steps: int,
    skipped: int,
    tile_px: int | None = None,
    *,
    conditioned: bool = False,
    given: tuple[int, int] | None = None,
) -> Stage:
    tile_px = tile_px or request.advanced.tile_size_px or card.native_size_px
    tiling = choose_tiling(request, tile_px, anchored=skipped > 0 or conditioned)
    # The network of a conditioned stage shares no attention: it sees the whole of the smaller picture in its place.
    attention = None if conditioned else _plan_attention(card, request, size, tiling.tile_size_px)
    guidance = ALWAYS_GUIDED if conditioned else card.choose_guidance_interval(request)
    return Stage(*size, tiling, steps, skipped, conditioned, given, attention, guidance=guidance)


def _plan_attention(
    card: ModelCard, request: GenerationRequest, size: tuple[int, int], tile_px: int
) -> StageAttention | None:
    style = request.active_style
    if style is not None and style.has_picture:
        return _attend_to_style(card, request.style_px or (1, 1), style.strength)
    kind, asked = card.choose_attention(request), request.advanced.attention_strength
    strength = card.attention_strength if asked is None else asked
    if kind == "off" or strength == 0 or max(size) <= tile_px:
        return None
    conductor = fit_conductor(*size, tile_px, card.alignment_px, card.max_tile_size_px)
    # On a canvas of two tiles a side the conductor shows as much as neighbourhoods do.
    neighbours = kind == "conductor+neighbours" and max(size) > 2 * tile_px
    return StageAttention(*conductor, strength, neighbours)


def _attend_to_style(card: ModelCard, size: tuple[int, int], strength: float) -> StageAttention:
    """A style picture of that (width, height), seen at the size that the model knows, in all steps."""
    native_px = card.native_size_px
    conductor = fit_conductor(*size, native_px, card.alignment_px, card.max_tile_size_px)
    return StageAttention(*conductor, strength, share=1.0, styled=True)


def _cut(stage: Stage, strength: float) -> Stage:
    """A later stage of which no more than this share of the schedule is run, but one step is."""
    steps = min(stage.steps, max(int(stage.schedule_steps * strength), 1))
    return replace(stage, steps=steps, skipped=stage.schedule_steps - steps)
