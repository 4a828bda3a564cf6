"""Checks a request against the card of its model: sizes, tiles, steps, stages and options."""

from collections.abc import Iterator, Sequence
from math import ceil

from api_schemas.advanced import ALWAYS_GUIDED
from api_schemas.catalog import AddOnKind, ModelCard
from api_schemas.errors import FieldError
from api_schemas.generation import GenerationRequest
from api_schemas.layout import Stage
from api_schemas.regions import RegionShape
from api_schemas.source import SourceMask
from api_schemas.style import Style

_TITLES: dict[AddOnKind, str] = {"lora": "LoRA", "controlnet": "ControlNet", "ip_adapter": "IP-Adapter"}


def find_misfits(request: GenerationRequest, card: ModelCard, stages: Sequence[Stage]) -> list[FieldError]:
    """Every value that this model does not support, with those that it does.

    Args:
        stages: those that the picture is generated in.
    """
    return [
        *_check_deadlines(request),
        *_check_sides(request, card),
        *_check_steps(request, card),
        *_check_tiles(request, card),
        *_check_stages(request, card, stages),
        *_check_add_ons(request, card),
        *_check_conditions(request, card),
        *_check_guidance_interval(request, card),
        *_check_regions(request, card),
        *_check_mask(request),
        *_check_variations(request),
    ]


def _check_deadlines(request: GenerationRequest) -> Iterator[FieldError]:
    start_s, finish_s = request.start_within_s, request.finish_within_s
    if start_s is not None and finish_s is not None and finish_s < start_s:
        allowed = f"at least `start_within_s`, which is {start_s:g}: both count from the POST"
        yield FieldError(field="finish_within_s", value=f"{finish_s:g}", allowed=allowed)


def _check_sides(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    for field, side_px, axis in (("width_px", request.width_px, "x"), ("height_px", request.height_px, "y")):
        lowest, highest = card.min_side_px, card.max_side_px
        if request.seamless in (axis, "both") and side_px not in (sides := card.nearest_sides(side_px)):
            nearest = " or ".join(map(str, dict.fromkeys(sides)))
            allowed = f"multiples of {card.alignment_px} from {lowest} to {highest} where it is seamless; the nearest: {nearest}"
        elif not lowest <= side_px <= highest:
            allowed = f"{lowest} to {highest}"
        else:
            continue
        yield _refuse_side(field, side_px, allowed, request.upscale)


def _refuse_side(field: str, side_px: int, allowed: str, upscale: int | None) -> FieldError:
    """A side of what is enlarged was not sent: it follows from the source's."""
    if upscale is None:
        return FieldError(field=field, value=str(side_px), allowed=allowed)
    side = f"{field.removesuffix('_px')} of {side_px // upscale} px"
    allowed = f"what makes the source's {side}, {side_px} px with this, {allowed}"
    return FieldError(field="upscale", value=str(upscale), allowed=allowed)


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


def _check_stages(
    request: GenerationRequest, card: ModelCard, stages: Sequence[Stage]
) -> Iterator[FieldError]:
    asked = request.advanced.stages
    if len(asked) > len(stages):
        sizes = ", then ".join(f"{stage.width_px}x{stage.height_px}" for stage in stages)
        yield FieldError(
            field="advanced.stages",
            value=f"{len(asked)} stages",
            allowed=f"at most {len(stages)}: model {card.name} generates this picture at {sizes} px",
        )
    yield from _check_first(request)
    yield from _check_conditioned(request, card, stages)
    first_steps = request.advanced.stage(0).steps or request.steps
    leaves_card = first_steps is not None and not card.min_steps <= first_steps <= card.max_steps
    for level, stage in enumerate(stages):
        settings = request.advanced.stage(level)
        field = f"advanced.stages.{level}"
        if settings.steps is not None and settings.steps > card.max_steps:
            allowed = f"1 to {card.max_steps} for model {card.name}"
            yield FieldError(field=f"{field}.steps", value=str(settings.steps), allowed=allowed)
        elif settings.steps is None and leaves_card:
            continue  # it has its share of them: not another fault
        elif not card.min_steps <= stage.schedule_steps <= card.max_schedule_steps:
            yield _leaves_schedule(field, stage, card)


def _leaves_schedule(field: str, stage: Stage, card: ModelCard) -> FieldError:
    """Steps and strength are the card's unless the request sets them."""
    takes = f"the scheduler of model {card.name} takes {card.min_steps} to {card.max_schedule_steps} steps in a full schedule"
    if stage.schedule_steps < card.min_steps:
        least = ceil(card.min_steps * stage.strength)
        allowed = f"at least {least} with strength {stage.strength:.2g}: {takes}"
        return FieldError(field=f"{field}.steps", value=str(stage.steps), allowed=allowed)
    allowed = f"at least {stage.steps / card.max_schedule_steps:g} with {stage.steps} steps, or fewer steps: {takes}"
    return FieldError(field=f"{field}.strength", value=f"{stage.strength:.2g}", allowed=allowed)


def _check_first(request: GenerationRequest) -> Iterator[FieldError]:
    for first in request.advanced.stages[:1]:
        if first.strength not in (None, 1.0):
            allowed = "1: the first stage starts from pure noise"
            yield FieldError(field="advanced.stages.0.strength", value=f"{first.strength:g}", allowed=allowed)
        if first.steps is not None and request.steps not in (None, first.steps):
            allowed = f"{request.steps}, as the field steps says, or only one of the two"
            yield FieldError(field="advanced.stages.0.steps", value=str(first.steps), allowed=allowed)


def _check_conditioned(
    request: GenerationRequest, card: ModelCard, stages: Sequence[Stage]
) -> Iterator[FieldError]:
    for level, stage in enumerate(stages):
        strength = request.advanced.stage(level).strength
        if stage.conditioned and strength not in (None, 1.0):
            yield FieldError(
                field=f"advanced.stages.{level}.strength",
                value=f"{strength:g}",
                allowed=f"1: model {card.name} starts this stage from pure noise, and sees the stage before",
            )


def _check_add_ons(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    for index, lora in enumerate(request.loras):
        yield from _check_name(f"loras.{index}.name", lora.name, card.loras, "lora", card)
    if request.control is not None:
        yield from _check_name("control.name", request.control.name, card.controlnets, "controlnet", card)
    if request.ip_adapter is not None:
        name = request.ip_adapter.name
        yield from _check_name("ip_adapter.name", name, card.ip_adapters, "ip_adapter", card)


def _check_conditions(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    positions = request.advanced.positions
    if positions not in card.positions:
        allowed = f"{' or '.join(card.positions)}: what model {card.name} ({card.family}) supports"
        yield FieldError(field="advanced.positions", value=positions, allowed=allowed)
    attention, style = request.advanced.attention, request.style
    if style is not None and style.has_picture and not card.style_image:
        yield _refuse_style_picture(style, f"model {card.name} ({card.family})")
    elif style is not None and style.has_picture and attention not in ("auto", "off"):
        allowed = "auto or off: tiles attend to the style picture in the conductor's place"
        yield FieldError(field="advanced.attention", value=attention, allowed=allowed)
    elif attention != "auto" and attention not in card.attention:
        allowed = f"{', '.join(['auto', *card.attention])}: what model {card.name} ({card.family}) supports"
        yield FieldError(field="advanced.attention", value=attention, allowed=allowed)
    if request.negative_prompt and not card.negative_prompt:
        allowed = f"nothing: model {card.name} ({card.family}) uses no negative prompt"
        yield FieldError(field="negative_prompt", value=request.negative_prompt[:200], allowed=allowed)
    if request.guidance_scale not in (None, 1.0) and not card.guidance:
        allowed = f"1: model {card.name} ({card.family}) was trained to work without guidance"
        yield FieldError(field="guidance_scale", value=f"{request.guidance_scale:g}", allowed=allowed)


def _refuse_style_picture(style: Style, model: str) -> FieldError:
    """By what was sent: a picture, or a style without words, which stands for one."""
    if style.style_image:
        allowed = f"no style picture: {model} takes a style in words alone, as `style.prompt`"
        return FieldError(field="style.style_image", value="true", allowed=allowed)
    allowed = f"words, as `style.prompt`: {model} takes no style picture"
    return FieldError(field="style", value=style.model_dump_json(exclude_unset=True), allowed=allowed)


def _check_guidance_interval(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    """Only what is guided by two branches, one of them with a negative prompt, can leave one out."""
    interval = request.advanced.guidance_interval
    if interval in (None, ALWAYS_GUIDED):
        return
    model = f"model {card.name} ({card.family})"
    if not card.guidance:
        allowed = f"[0, 1]: {model} was trained to work without guidance"
    elif not card.negative_prompt:
        allowed = f"[0, 1]: {model} is guided within one prediction"
    elif card.choose_guidance_scale(request) == 1.0:
        allowed = "[0, 1], or a `guidance_scale` above 1: at 1 there is no guidance"
    else:
        return
    yield FieldError(field="advanced.guidance_interval", value=str(list(interval)), allowed=allowed)


def _check_regions(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    for index, region in enumerate(request.regions):
        field = f"regions.{index}"
        yield from _check_place(f"{field}.shape", region.shape, request.width_px, request.height_px)
        if region.negative_prompt and not card.negative_prompt:
            allowed = f"nothing: model {card.name} ({card.family}) uses no negative prompt"
            value = region.negative_prompt[:200]
            yield FieldError(field=f"{field}.negative_prompt", value=value, allowed=allowed)


def _check_mask(request: GenerationRequest) -> Iterator[FieldError]:
    if request.mask is not None:
        yield from _check_place("mask", request.mask, request.width_px, request.height_px)


def _check_variations(request: GenerationRequest) -> Iterator[FieldError]:
    """Noise mixed with itself would be stronger than the scheduler expects."""
    used = [request.seed, *(region.seed for region in request.regions)]
    for index, variation in enumerate(request.variations):
        if variation.seed in used:
            field, allowed = (
                f"variations.{index}.seed",
                "another seed than those that the picture has already",
            )
            yield FieldError(field=field, value=str(variation.seed), allowed=allowed)
        used.append(variation.seed)


def _check_place(
    field: str, shape: RegionShape | SourceMask, width_px: int, height_px: int
) -> Iterator[FieldError]:
    """Every corner must lie on the picture or on its edge."""
    allowed = f"within the picture: x from 0 to {width_px} px, y from 0 to {height_px} px"
    outside = [(x, y) for x, y in shape.list_corners() if x > width_px or y > height_px]
    if outside and shape.rectangle is not None:
        value = shape.rectangle.model_dump_json()
        yield FieldError(field=f"{field}.rectangle", value=value, allowed=allowed)
    elif outside and shape.polygon is not None:
        for index, corner in enumerate(shape.polygon):
            if corner in outside:
                yield FieldError(field=f"{field}.polygon.{index}", value=str(list(corner)), allowed=allowed)


def _check_name(
    field: str, name: str, known: Sequence[str], kind: AddOnKind, card: ModelCard
) -> Iterator[FieldError]:
    if name in known:
        return
    title, model = _TITLES[kind], f"model {card.name} ({card.family})"
    if not known and kind not in card.supports:
        taken = ", ".join(_TITLES[each] for each in card.supports) or "no add-ons"
        allowed = f"none: {model} supports no {title}; it supports {taken}"
    else:
        names = f"one of: {', '.join(known)}" if known else "none"
        allowed = f"{names}; the {title}s on the card of {model}"
    yield FieldError(field=field, value=name[:200], allowed=allowed)
