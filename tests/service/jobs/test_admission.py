"""What a request leaves open is filled in from the card of its model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_schemas.advanced import AdvancedSettings, StageSettings
from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest, Layout
from api_schemas.scenes import SceneWords
from api_schemas.stages import lay_stages
from service.jobs.admission import find_excess, resolve
from service.waiting import WaitingCounts

CARD = ModelCard(
    name="m", family="f", native_size_px=1024, alignment_px=64, latent_channels=4, vae_scale=8,
    default_steps=30, max_steps=100, default_guidance_scale=5.0, layout="cascade",
)  # fmt: skip

REGION = {
    "prompt": "sand",
    "shape": {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 512, "height_px": 512}},
}
steps = st.none() | st.integers(1, 100)


@given(steps, steps, steps, st.sampled_from((512, 1024, 2048, 4096)))
def test_the_worker_generates_the_stages_that_were_checked_and_counted(
    all_steps: int | None, first: int | None, second: int | None, side_px: int
) -> None:
    stages = [StageSettings(steps=first), StageSettings(steps=second)][: 1 + (side_px > 1024)]
    request = GenerationRequest(
        width_px=side_px,
        height_px=side_px,
        steps=None if first else all_steps,
        advanced=AdvancedSettings(stages=stages),
    )
    data = resolve(request, CARD)
    laid = lay_stages(CARD, data.request)
    assert laid == lay_stages(CARD, request)
    assert data.request.steps == laid[0].steps == (first or request.steps or CARD.default_steps)
    assert data.cost.steps == sum(stage.steps for stage in laid)


@given(
    st.sampled_from(("mountains", "grass", "a cat")),
    st.sampled_from(("auto", "cascade", "flat")),
    st.sampled_from((None, SceneWords(bias=-1, weights={2: "mountains", -2: "grass"}))),
)
def test_the_job_says_which_layout_it_has_and_why(
    prompt: str, layout: Layout, words: SceneWords | None
) -> None:
    card = CARD.model_copy(update={"scene_words": words})
    request = GenerationRequest(prompt=prompt, layout=layout, width_px=2048, height_px=2048)
    data = resolve(request, card)
    assert data.request.layout == ("cascade" if len(lay_stages(card, request)) > 1 else "flat")
    assert lay_stages(card, data.request) == lay_stages(card, request)
    assert (data.request.layout_reason == "") == (layout != "auto")


@pytest.mark.parametrize(
    ("asked", "strength"),
    [
        ({"prompt": "grass"}, 0.8),
        ({"prompt": "a cat"}, 0.8),
        ({"prompt": "mountains"}, 0.0),
        ({"prompt": "mountains", "layout": "flat"}, 0.0),
        ({"prompt": "mountains", "seamless": "both"}, 0.8),
        ({"prompt": "mountains", "seamless": "both", "layout": "flat"}, 0.8),
        ({"prompt": "mountains", "layout": "flat", "advanced": {"sync_strength": 0.3}}, 0.3),
        ({"prompt": "grass", "layout": "cascade"}, 0.0),
        ({"prompt": "grass", "advanced": {"sync_strength": 0.0}}, 0.0),
        ({"prompt": "grass", "regions": [REGION]}, 0.0),
    ],
)
def test_textures_alone_are_synced_unless_a_client_says_otherwise(
    asked: dict[str, object], strength: float
) -> None:
    words = SceneWords(bias=-1, weights={2: "mountains", -2: "grass"})
    card = CARD.model_copy(update={"sync_strength": 0.8, "layout": "flat", "scene_words": words})
    resolved = resolve(GenerationRequest.model_validate(asked), card).request
    assert resolved.advanced.sync_strength == strength
    assert card.choose_sync_strength(resolved) == strength
    assert card.is_alike(resolved) == card.is_alike(GenerationRequest.model_validate(asked))


@pytest.mark.parametrize(("prompt", "whole", "part"), [("grass", 0.0, 0.8), ("mountains", 0.0, 0.0)])
def test_of_a_source_parts_of_textures_alone_are_synced(prompt: str, whole: float, part: float) -> None:
    words = SceneWords(bias=-1, weights={2: "mountains", -2: "grass"})
    card = CARD.model_copy(update={"sync_strength": 0.8, "layout": "flat", "scene_words": words})
    asked = {"prompt": prompt, "source": {}, "mask": REGION["shape"]}
    assert card.choose_sync_strength(GenerationRequest.model_validate(asked)) == part
    assert card.choose_sync_strength(GenerationRequest.model_validate(asked | {"mask": None})) == whole


@pytest.mark.parametrize(
    ("asked", "found"), [(None, (0.2, 0.9)), ([0.0, 0.5], (0.0, 0.5)), ([0, 1], (0.0, 1.0))]
)
def test_a_job_says_where_it_is_guided(asked: list[float] | None, found: tuple[float, float]) -> None:
    card = CARD.model_copy(update={"guidance_interval": (0.2, 0.9)})
    request = GenerationRequest.model_validate({"advanced": {"guidance_interval": asked}})
    data = resolve(request, card)
    assert data.request.advanced.guidance_interval == found
    assert (data.cost.unguided_tiles == 0) == (found == (0.0, 1.0))
    assert resolve(request, CARD).request.advanced.guidance_interval == (found if asked else (0.0, 1.0))
    bare = GenerationRequest(guidance_scale=1.0)
    assert resolve(bare, card).request.advanced.guidance_interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"source": {}, "upscale": 2}, "tile"),
        ({"source": {}, "upscale": 2, "control": {"name": "edges"}}, "edges"),
        ({"source": {}}, None),
        ({}, None),
    ],
)
def test_what_is_enlarged_has_the_controlnet_for_tiles_unless_a_client_names_another(
    asked: dict[str, object], name: str | None
) -> None:
    names = {"controlnets": ["edges", "tile"], "tile_controlnet": "tile"}
    request = GenerationRequest.model_validate(asked)
    resolved = resolve(request, CARD.model_copy(update=names)).request
    assert (resolved.control and resolved.control.name) == name
    assert ("first by name" in resolved.control_reason) == (name == "tile")
    assert resolve(request.model_copy(update={"control": None}), CARD).request.control is None


@given(
    st.integers(1, 50),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=150),
)
def test_a_key_with_few_jobs_has_a_place_until_there_are_twice_as_many(
    most: int, listed: int, requests: list[tuple[int, int]]
) -> None:
    """Of seven keys that come in any order, and none of whose jobs leaves."""
    waiting = [0] * 7
    for key, count in requests:
        others = sum(jobs > 0 for jobs in waiting[:key] + waiting[key + 1 :])
        total = listed + sum(waiting) + count
        crowd = WaitingCounts(listed, sum(waiting), waiting[key], others + 1)
        excess = find_excess(crowd, most, count, shared=True)
        if total <= most:
            assert excess <= 0
        elif excess <= 0:
            assert total <= 2 * most
            assert waiting[key] + count <= max(1, most / (others + 1))
        else:
            assert 0 < excess <= total - most
            assert waiting[key] > 0 or count > 1 or total > 2 * most
        assert find_excess(crowd, most, count, shared=False) == total - most
        if excess <= 0:
            waiting[key] += count
