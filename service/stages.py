"""Checks `advanced.stages` against the stages that the picture is generated in."""

from collections.abc import Iterator

from api_schemas.cascade import Stage
from api_schemas.catalog import ModelCard
from api_schemas.errors import FieldError
from api_schemas.generation import GenerationRequest, StageSettings


def find_stage_misfits(request: GenerationRequest, card: ModelCard) -> Iterator[FieldError]:
    """Every invalid value in `advanced.stages`, with what is allowed."""
    stages = card.lay_stages(request)
    asked = request.advanced.stages
    if len(asked) > len(stages):
        sizes = ", then ".join(f"{stage.width_px}x{stage.height_px}" for stage in stages)
        yield FieldError(
            field="advanced.stages",
            value=f"{len(asked)} stages",
            allowed=f"at most {len(stages)}: model {card.name} generates this picture at {sizes} px",
        )
    yield from _check_first(request)
    for level, stage in enumerate(stages):
        settings = asked[level] if level < len(asked) else StageSettings()
        field = f"advanced.stages.{level}"
        if settings.steps is not None and settings.steps > card.max_steps:
            allowed = f"1 to {card.max_steps} for model {card.name}"
            yield FieldError(field=f"{field}.steps", value=str(settings.steps), allowed=allowed)
        elif stage.schedule_steps > card.max_schedule_steps:
            yield _exceeds_schedule(f"{field}.strength", stage, card)


def _exceeds_schedule(field: str, stage: Stage, card: ModelCard) -> FieldError:
    """The strength is the card's unless the request sets it."""
    least = stage.steps / card.max_schedule_steps
    allowed = (
        f"at least {least:g} with {stage.steps} steps: the scheduler of model {card.name} supports"
        f" a full schedule of at most {card.max_schedule_steps}"
    )
    return FieldError(field=field, value=f"{stage.strength:g}", allowed=allowed)


def _check_first(request: GenerationRequest) -> Iterator[FieldError]:
    for first in request.advanced.stages[:1]:
        if first.strength not in (None, 1.0):
            allowed = "1: the first stage starts from pure noise"
            yield FieldError(field="advanced.stages.0.strength", value=f"{first.strength:g}", allowed=allowed)
        if first.steps is not None and request.steps not in (None, first.steps):
            allowed = f"{request.steps}, as the field steps says, or only one of the two"
            yield FieldError(field="advanced.stages.0.steps", value=str(first.steps), allowed=allowed)
