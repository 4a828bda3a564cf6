"""What a card does not support is refused by field, value and what is allowed."""

import pytest

from api_schemas.add_ons import ControlSettings, LoraChoice
from api_schemas.advanced import AdvancedSettings
from api_schemas.catalog import ModelCard
from api_schemas.errors import FieldError
from api_schemas.generation import GenerationRequest
from api_schemas.regions import RectangleShape, Region, RegionShape
from api_schemas.stages import lay_stages
from service.jobs.validation import find_misfits

CARD = ModelCard(
    name="m", family="f", native_size_px=1024, alignment_px=64, latent_channels=4, vae_scale=8,
    default_steps=30, max_steps=100, default_guidance_scale=5.0, layout="cascade",
)  # fmt: skip
FEW_STEPS = ModelCard(
    name="few-steps", family="flux", native_size_px=1024, alignment_px=16, latent_channels=16, vae_scale=8,
    default_steps=4, default_guidance_scale=1.0, negative_prompt=False, guidance=False, max_tile_size_px=1536,
)  # fmt: skip

REGION = Region(
    prompt="dunes", shape=RegionShape(rectangle=RectangleShape(left_px=0, top_px=0, width_px=9, height_px=9))
)


def find(request: GenerationRequest, card: ModelCard) -> list[FieldError]:
    return find_misfits(request, card, lay_stages(card, request))


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
        (ask(start_within_s=60, finish_within_s=59.5), "finish_within_s", "59.5", "at least `start_within_s`, which is 60: both count from the POST"),
        (ask(source={}, upscale=2, width_px=514, height_px=100, seamless="x"), "upscale", "2", "what makes the source's width of 257 px, 514 px with this, multiples of 64 from 64 to 16384 where it is seamless; the nearest: 512 or 576"),
        (ask(source={}, style={"strength": 0.5}), "style", '{"strength":0.5}', "words, as `style.prompt`: model m (f) takes no style picture"),
        (ask({}, {"steps": 120}), "advanced.stages.1.steps", "120", "1 to 100 for model m"),
        (ask({}, {"steps": 80, "strength": 0.05}), "advanced.stages.1.strength", "0.05", "at least 0.08 with 80 steps, or fewer steps: the scheduler of model m takes 1 to 1000 steps in a full schedule"),
    ],
)  # fmt: skip
def test_what_cannot_be_generated_is_named(
    request_: GenerationRequest, field: str, value: str, allowed: str
) -> None:
    (error,) = find(request_, CARD)
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_a_stage_that_sees_the_one_before_has_no_strength() -> None:
    cascade = CARD.cascade.model_copy(update={"conditioned": True})
    card = CARD.model_copy(update={"cascade": cascade})
    (error,) = find(ask({}, {"strength": 0.3}), card)
    assert (error.field, error.value) == ("advanced.stages.1.strength", "0.3")
    assert error.allowed == "1: model m starts this stage from pure noise, and sees the stage before"
    assert find(ask({}, {"strength": 1.0, "steps": 6}), card) == []


def test_too_many_steps_are_one_fault_whatever_each_stage_has_of_them() -> None:
    few = CARD.model_copy(update={"max_steps": 50, "max_schedule_steps": 50})
    assert [error.field for error in find(ask(steps=60), few)] == ["steps"]
    assert [error.field for error in find(ask({"steps": 60}), few)] == ["advanced.stages.0.steps"]


@pytest.mark.parametrize(
    ("request_", "field", "value", "allowed"),
    [
        (GenerationRequest(guidance_scale=3.5), "guidance_scale", "3.5", "1: model few-steps (flux)"),
        (GenerationRequest(negative_prompt="moss"), "negative_prompt", "moss", "nothing: model few-steps"),
        (
            GenerationRequest(regions=[REGION, REGION.model_copy(update={"negative_prompt": "moss"})]),
            "regions.1.negative_prompt",
            "moss",
            "nothing: model few-steps",
        ),
        (
            GenerationRequest(advanced=AdvancedSettings(positions="global")),
            "advanced.positions",
            "global",
            "local: what model few-steps (flux) supports",
        ),
        (
            GenerationRequest(advanced=AdvancedSettings(attention="conductor")),
            "advanced.attention",
            "conductor",
            "auto, off: what model few-steps (flux) supports",
        ),
        (
            GenerationRequest(advanced=AdvancedSettings(guidance_interval=(0.2, 0.8))),
            "advanced.guidance_interval",
            "[0.2, 0.8]",
            "[0, 1]: model few-steps (flux) was trained to work without guidance",
        ),
        (
            GenerationRequest(advanced=AdvancedSettings(tile_size_px=2048)),
            "advanced.tile_size_px",
            "2048",
            "at most 1536 for model few-steps",
        ),
    ],
)
def test_what_the_model_cannot_do_is_named(
    request_: GenerationRequest, field: str, value: str, allowed: str
) -> None:
    (error,) = find(request_, FEW_STEPS)
    assert (error.field, error.value) == (field, value)
    assert error.allowed.startswith(allowed)


def test_an_add_on_that_a_family_cannot_take_is_told_from_one_that_is_not_listed() -> None:
    sana = FEW_STEPS.model_copy(update={"family": "sana", "supports": ["lora"]})
    control = GenerationRequest(control=ControlSettings(name="edges"))
    lora = GenerationRequest(loras=[LoraChoice(name="moss")])
    (refused,), (unlisted,), (bare,) = (
        find(*each) for each in ((control, sana), (lora, sana), (lora, FEW_STEPS))
    )
    assert (refused.field, refused.value) == ("control.name", "edges")
    assert refused.allowed == "none: model few-steps (sana) supports no ControlNet; it supports LoRA"
    assert unlisted.allowed == "none; the LoRAs on the card of model few-steps (sana)"
    assert bare.allowed == "none: model few-steps (flux) supports no LoRA; it supports no add-ons"


@pytest.mark.parametrize("guidance_scale", [None, 1.0])
def test_guidance_that_is_off_is_no_guidance(guidance_scale: float | None) -> None:
    assert not find(GenerationRequest(guidance_scale=guidance_scale), FEW_STEPS)


def test_an_interval_needs_a_branch_to_leave_out() -> None:
    embedded = FEW_STEPS.model_copy(update={"guidance": True})  # as FLUX.1 dev
    asked = GenerationRequest(advanced=AdvancedSettings(guidance_interval=(0.2, 0.8)))
    (error,) = find(asked, embedded)
    assert error.allowed == "[0, 1]: model few-steps (flux) is guided within one prediction"
    assert not find(asked, CARD)
    (error,) = find(asked.model_copy(update={"guidance_scale": 1.0}), CARD)
    assert error.allowed == "[0, 1], or a `guidance_scale` above 1: at 1 there is no guidance"
    always = GenerationRequest(advanced=AdvancedSettings(guidance_interval=(0.0, 1.0)))
    assert not find(always, embedded)


def test_noise_is_not_mixed_with_itself() -> None:
    steps = [{"seed": 5}, {"seed": 7}, {"seed": 5}, {"seed": 3}]
    request = GenerationRequest.model_validate({"seed": 7, "variations": steps})
    assert [error.field for error in find(request, CARD)] == ["variations.1.seed", "variations.2.seed"]


STYLED = CARD.model_copy(update={"style_image": True, "attention": ["off", "conductor"]})


@pytest.mark.parametrize(
    ("card", "style", "attention", "field", "allowed"),
    [
        (CARD, {}, "auto", "style", "words, as `style.prompt`: model m (f) takes no style picture"),
        (CARD, {"prompt": "ink", "style_image": True}, "off", "style.style_image", "as `style.prompt`"),
        (STYLED, {}, "conductor", "advanced.attention", "auto or off: tiles attend to the style picture"),
    ],
)
def test_a_style_that_the_model_cannot_take_is_named(
    card: ModelCard, style: dict[str, object], attention: str, field: str, allowed: str
) -> None:
    (error,) = find(ask(source={}, style=style, advanced={"attention": attention}), card)
    assert error.field == field
    assert allowed in error.allowed


@pytest.mark.parametrize("style", [{}, {"prompt": "ink"}, {"prompt": "ink", "style_image": True}])
def test_a_style_costs_a_prediction_a_step_where_it_is_a_picture(style: dict[str, object]) -> None:
    fixed = {"source": {}, "steps": 8, "strength": 1.0, "advanced": {"tile_grid": "fixed"}}
    request, plain = ask(**fixed, style=style), ask(**fixed)
    assert find(request, STYLED) == []
    tiles, alone = (STYLED.estimate(each, lay_stages(STYLED, each)).tiles for each in (request, plain))
    assert tiles - alone == (0 if style == {"prompt": "ink"} else 8)
    assert CARD.style_image or find(ask(source={}, style={"prompt": "ink"}), CARD) == []
