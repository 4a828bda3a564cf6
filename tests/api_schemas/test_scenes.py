"""What `auto` makes of a prompt."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest
from api_schemas.scenes import SceneWords

ROOT = Path(__file__).parents[2]
WORDS = SceneWords(bias=-1, weights={3: "lake mountains", 1: "field", 0.5: "far", -2: "floor grass"})
CARD = ModelCard(
    name="m", family="f", native_size_px=512, alignment_px=32, latent_channels=4, vae_scale=8,
    default_steps=5, default_guidance_scale=1.0, layout="flat", scene_words=WORDS,
)  # fmt: skip
SCENES = (
    "mountains above a misty lake at dawn",
    "desert dunes at sunset",
    "stormy grey clouds",
    "a valley with a river",
    "sea of clouds",
    "grass field under a blue sky",
    "clouds",
    "beach at sunset",
    "night sky with stars",
    "snowy mountain peak",
    "autumn forest with a path",
    "a tropical beach",
    "sand dunes",
    "a waterfall in the jungle",
    "a glacier with ice and rock",
    "meadow with grass and flowers",
    "waterfall over stones and moss",
    "a cliff above the sea",
)
TEXTURES = (
    "grey cobblestones",
    "glowing orange lava",
    "red brick wall",
    "green grass",
    "sand",
    "white marble",
    "snow",
    "rusty metal",
    "forest floor with leaves",
    "plain red brick",
    "wet pebbles on a beach",
    "ripples in dune sand",
)


def choose(**fields: object) -> tuple[str, str]:
    return CARD.choose_layout(GenerationRequest.model_validate(fields))


@pytest.mark.parametrize(
    ("prompt", "layout", "reason"),
    [
        ("Mountains, a far LAKE", "cascade", "'mountains' and 'lake' suggest a scene"),
        ("a lake with mountains and a field", "cascade", "'lake' and 'mountains' suggest a scene"),
        ("a lake of grass", "flat", "'grass' suggests a texture"),
        ("a far place", "flat", "'far' suggests a scene, but not clearly"),
        ("a cat", "flat", "no word of the prompt suggests a scene or a texture: the default of model m"),
        ("", "flat", "no word of the prompt suggests a scene or a texture: the default of model m"),
    ],
)
def test_words_decide_and_are_named(prompt: str, layout: str, reason: str) -> None:
    assert choose(prompt=prompt) == (layout, reason)


@pytest.mark.parametrize(
    ("prompt", "regions", "layout"),
    [
        ("", ["grass", "mountains by a lake"], "cascade"),
        ("grass", ["mountains"], "cascade"),
        ("mountains", ["grass"], "cascade"),
        ("", ["floor", "grass"], "flat"),
    ],
)
def test_one_region_with_a_scene_makes_a_scene(prompt: str, regions: list[str], layout: str) -> None:
    shape = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 64, "height_px": 64}}
    chosen, reason = choose(prompt=prompt, regions=[{"prompt": each, "shape": shape} for each in regions])
    assert chosen == layout
    assert "suggest" in reason


@given(st.permutations(["mountains", "grass", "floor", "of", "lake"]), st.integers(1, 3))
def test_neither_order_nor_repetition_nor_case_changes_it(words: list[str], times: int) -> None:
    prompt = " ".join(words * times)
    assert WORDS.judge(prompt)[0] is WORDS.judge(prompt.upper())[0] is True


@pytest.mark.parametrize("seamless", ["y", "both"])
def test_what_wraps_vertically_is_a_texture_whatever_the_words(seamless: str) -> None:
    assert choose(prompt="mountains", seamless=seamless) == (
        "flat",
        "a canvas that is seamless from top to bottom has no horizon",
    )
    assert choose(prompt="mountains", seamless="x")[0] == "cascade"


@pytest.mark.parametrize("layout", ["cascade", "flat"])
def test_a_request_overrides_it_without_a_reason(layout: str) -> None:
    assert choose(prompt="mountains", seamless="y", layout=layout) == (layout, "")


@pytest.mark.parametrize("layout", ["cascade", "flat"])
def test_a_card_without_words_has_one_layout(layout: str) -> None:
    card = CARD.model_copy(update={"scene_words": None, "layout": layout})
    request = GenerationRequest(prompt="mountains", seamless="y")
    assert card.choose_layout(request) == (layout, "the default of model m")


@pytest.mark.parametrize(
    "wrong", [{"bias": 1, "weights": {}}, {"bias": -1, "weights": {"nan": "sky"}}, {"weights": {}}]
)
def test_words_that_could_not_be_weighed_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SceneWords.model_validate_json(json.dumps(wrong))


@pytest.fixture(scope="module")
def bundled() -> SceneWords:
    settings = (ROOT / "worker" / "bundled" / "chorale.json").read_text(encoding="utf-8")
    return SceneWords.model_validate(json.loads(settings)["scene_words"])


@pytest.mark.parametrize("prompt", SCENES)
def test_the_bundled_model_knows_scenes(bundled: SceneWords, prompt: str) -> None:
    assert bundled.judge(prompt)[0] is True


@pytest.mark.parametrize("prompt", TEXTURES)
def test_the_bundled_model_knows_textures(bundled: SceneWords, prompt: str) -> None:
    assert bundled.judge(prompt)[0] is not True


def test_the_bundled_words_are_a_few_kilobytes(bundled: SceneWords) -> None:
    assert len(bundled.model_dump_json()) < 6000
