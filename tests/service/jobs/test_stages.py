"""What a request says about stages is refused by field, value and what is allowed."""

import pytest

from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest
from service.errors import InvalidRequestError
from service.jobs.admission import resolve

CARD = ModelCard(
    name="m", family="f", native_size_px=1024, alignment_px=64, latent_channels=4, vae_scale=8,
    default_steps=30, max_steps=100, default_guidance_scale=5.0, layout="cascade",
)  # fmt: skip


def ask(*stages: dict[str, float], **changes: object) -> GenerationRequest:
    fields = {"width_px": 2048, "height_px": 2048, "advanced": {"stages": list(stages)}}
    return GenerationRequest.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("request_", "field", "value", "allowed"),
    [
        (ask({}, {}, {}), "advanced.stages", "3 stages", "at most 2: model m generates this picture at 1024x1024, then 2048x2048 px"),
        (ask({}, {}, layout="flat"), "advanced.stages", "2 stages", "at most 1: model m generates this picture at 2048x2048 px"),
        (ask({"strength": 0.5}), "advanced.stages.0.strength", "0.5", "1: the first stage starts from pure noise"),
        (ask({"steps": 20}, steps=30), "advanced.stages.0.steps", "20", "30, as the field steps says, or only one of the two"),
        (ask({}, {"steps": 120}), "advanced.stages.1.steps", "120", "1 to 100 for model m"),
        (ask({}, {"steps": 80, "strength": 0.05}), "advanced.stages.1.strength", "0.05", "at least 0.08 with 80 steps, or fewer steps: the scheduler of model m takes 1 to 1000 steps in a full schedule"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_named(
    request_: GenerationRequest, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(request_, CARD)
    (error,) = caught.value.errors
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_too_many_steps_are_one_fault_whatever_each_stage_has_of_them() -> None:
    few = CARD.model_copy(update={"max_steps": 50, "max_schedule_steps": 50})
    with pytest.raises(InvalidRequestError) as caught:
        resolve(ask(steps=60), few)
    assert [error.field for error in caught.value.errors] == ["steps"]


def test_the_first_stages_steps_are_the_requests() -> None:
    assert resolve(ask({"steps": 20}, {"steps": 5}), CARD).steps == 20
    assert resolve(ask({}, {"steps": 5}, steps=9), CARD).steps == 9
