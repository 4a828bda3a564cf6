"""Checks the options of a request against those that the model's card supports."""

from collections.abc import Iterator, Sequence

from api_schemas.catalog import AddOnKind, ModelCard
from api_schemas.errors import FieldError
from api_schemas.generation import GenerationRequest

_TITLES: dict[AddOnKind, str] = {"lora": "LoRA", "controlnet": "ControlNet", "ip_adapter": "IP-Adapter"}


def find_unsupported(request: GenerationRequest, card: ModelCard) -> list[FieldError]:
    """Every option that this model does not support, with those that it does."""
    return [*_check_add_ons(request, card), *_check_conditions(request, card)]


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
    if request.negative_prompt and not card.negative_prompt:
        allowed = f"nothing: model {card.name} ({card.family}) uses no negative prompt"
        yield FieldError(field="negative_prompt", value=request.negative_prompt[:200], allowed=allowed)
    if request.guidance_scale not in (None, 1.0) and not card.guidance:
        allowed = f"1: model {card.name} ({card.family}) was trained to work without guidance"
        yield FieldError(field="guidance_scale", value=f"{request.guidance_scale:g}", allowed=allowed)


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
