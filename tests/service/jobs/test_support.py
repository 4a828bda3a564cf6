"""What a card does not promise is refused by field, value and what is allowed."""

import pytest

from api_schemas.catalog import ModelCard
from api_schemas.generation import AdvancedSettings, ControlSettings, GenerationRequest, LoraChoice
from service.jobs.validation import find_misfits, find_unsupported

CARD = ModelCard(
    name="few-steps", family="flux", native_size_px=1024, alignment_px=16, latent_channels=16, vae_scale=8,
    default_steps=4, default_guidance_scale=1.0, negative_prompt=False, guidance=False, max_tile_size_px=1536,
)  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "field", "value", "allowed"),
    [
        (GenerationRequest(guidance_scale=3.5), "guidance_scale", "3.5", "1: model few-steps (flux)"),
        (GenerationRequest(negative_prompt="moss"), "negative_prompt", "moss", "nothing: model few-steps"),
        (
            GenerationRequest(advanced=AdvancedSettings(positions="global")),
            "advanced.positions",
            "global",
            "local: what model few-steps (flux) supports",
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
    (error,) = [*find_unsupported(request_, CARD), *find_misfits(request_, CARD)]
    assert (error.field, error.value) == (field, value)
    assert error.allowed.startswith(allowed)


def test_an_add_on_that_a_family_cannot_take_is_told_from_one_that_is_not_listed() -> None:
    sana = CARD.model_copy(update={"family": "sana", "supports": ["lora"]})
    control = GenerationRequest(control=ControlSettings(name="edges"))
    lora = GenerationRequest(loras=[LoraChoice(name="moss")])
    (refused,), (unlisted,), (bare,) = (
        find_unsupported(*each) for each in ((control, sana), (lora, sana), (lora, CARD))
    )
    assert (refused.field, refused.value) == ("control.name", "edges")
    assert refused.allowed == "none: model few-steps (sana) supports no ControlNet; it supports LoRA"
    assert unlisted.allowed == "none; the LoRAs on the card of model few-steps (sana)"
    assert bare.allowed == "none: model few-steps (flux) supports no LoRA; it supports no add-ons"


@pytest.mark.parametrize("guidance_scale", [None, 1.0])
def test_guidance_that_is_off_is_no_guidance(guidance_scale: float | None) -> None:
    assert not find_unsupported(GenerationRequest(guidance_scale=guidance_scale), CARD)
