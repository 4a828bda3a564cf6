"""Checks `advanced.stages` against the stages that the picture is generated in."""

from collections.abc import Iterator
from math import ceil

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
    # Stages have their share of these: one that has too many or too few for that reason alone is not another fault.
    leaves_card = request.steps is not None and not card.min_steps <= request.steps <= card.max_steps
    for level, stage in enumerate(stages):
        settings = asked[level] if level < len(asked) else StageSettings()
        field = f"advanced.stages.{level}"
        if settings.steps is not None and settings.steps > card.max_steps:
            allowed = f"1 to {card.max_steps} for model {card.name}"
            yield FieldError(field=f"{field}.steps", value=str(settings.steps), allowed=allowed)
        elif not leaves_card and not card.min_steps <= stage.schedule_steps <= card.max_schedule_steps:
            yield _leaves_schedule(field, stage, card)


def _leaves_schedule(field: str, stage: Stage, card: ModelCard) -> FieldError:
    """Steps and strength are the card's unless the request sets them."""
    takes = f"the scheduler of model {card.name} takes {card.min_steps} to {card.max_schedule_steps} steps in a full schedule"
    if stage.schedule_steps < card.min_steps:
        least = ceil(card.min_steps * stage.strength)
        allowed = f"at least {least} with strength {stage.strength:g}: {takes}"
        return FieldError(field=f"{field}.steps", value=str(stage.steps), allowed=allowed)
    allowed = f"at least {stage.steps / card.max_schedule_steps:g} with {stage.steps} steps, or fewer steps: {takes}"
    return FieldError(field=f"{field}.strength", value=f"{stage.strength:g}", allowed=allowed)


def _check_first(request: GenerationRequest) -> Iterator[FieldError]:
    for first in request.advanced.stages[:1]:
        if first.strength not in (None, 1.0):
            allowed = "1: the first stage starts from pure noise"
            yield FieldError(field="advanced.stages.0.strength", value=f"{first.strength:g}", allowed=allowed)
        if first.steps is not None and request.steps not in (None, first.steps):
            allowed = f"{request.steps}, as the field steps says, or only one of the two"
            yield FieldError(field="advanced.stages.0.steps", value=str(first.steps), allowed=allowed)
