"""Every refused value is told by its field, with what is allowed in words of ours."""

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from api_schemas.add_ons import ControlSettings, IpAdapterSettings, LoraChoice
from api_schemas.advanced import AdvancedSettings, StageSettings
from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.folder_settings import FolderSettings, LatentRgb
from api_schemas.generation import GenerationRequest, ResolvedRequest
from api_schemas.layout import Cascade
from api_schemas.refused_values import form_of, list_refused
from api_schemas.regions import RectangleShape, Region, RegionShape
from api_schemas.scenes import SceneWords
from api_schemas.source import Offset, Source, SourceMask, Variation
from api_schemas.style import Style
from api_schemas.webhook import Webhook
from service.openai_api.parameters import ChoraleOptions, EditParameters
from service.settings import ServiceSettings
from worker.settings import WorkerSettings

MODELS: tuple[type[BaseModel], ...] = (
    GenerationRequest, AdvancedSettings, StageSettings, LoraChoice, ControlSettings, IpAdapterSettings, Region,
    RegionShape, RectangleShape, Source, SourceMask, Offset, Variation, Style, Webhook, ExtendRequest,
    RerollRequest, VariationsRequest, EditParameters, ChoraleOptions, FolderSettings, Cascade, LatentRgb, SceneWords,
)  # fmt: skip
SETTINGS: tuple[type[BaseModel], ...] = (ServiceSettings, WorkerSettings)
# Of each kind of JSON one that is wrong nearly everywhere, alone and as an item.
WRONG = (
    "x" * 40_000,
    "\ud800",
    True,
    0.123,
    -1e9,
    1e30,
    float("nan"),
    float("inf"),
    [],
    {},
    {"x": 1},
    [[]],
    None,
)
FOREIGN = re.compile(
    r"[Ii]nput|instance|\bvalid\b|[Tt]uple|dictionary|Value error|should|[A-Z][a-z]+[A-Z][a-z]"
)


def refuse(model: type[BaseModel], field: str, value: object) -> Iterator[tuple[str, str]]:
    """What is said of this field, or of what is in it."""
    try:
        model.model_validate({field: value})
    except ValidationError as refused:
        for error in list_refused(refused, model):
            if (error.field + ".").startswith(f"{field}."):
                yield error.field, error.allowed


@pytest.mark.parametrize("model", MODELS)
def test_what_is_allowed_is_said_for_every_field_in_our_words(model: type[BaseModel]) -> None:
    for field, described in form_of(model).schema["properties"].items():
        own = [each for value in WRONG for each in refuse(model, field, value)]
        assert own or described.get("type") == "null", f"nothing was refused as {field}"
        for place, allowed in own + [each for value in WRONG for each in refuse(model, field, [value])]:
            assert allowed, place
            assert not FOREIGN.search(allowed), (place, allowed)


@pytest.mark.parametrize("model", SETTINGS)
def test_what_an_operator_may_set_is_said_in_our_words(model: type[BaseModel]) -> None:
    """In the environment all is text."""
    for field in form_of(model).schema["properties"]:
        for value in ("x y", "\ud800", "-1e9", "inf"):
            for place, allowed in refuse(model, field, value):
                assert allowed, place
                assert not FOREIGN.search(allowed), (place, allowed)


def find_numbers() -> Iterator[tuple[type[BaseModel], str, list[float]]]:
    for model in MODELS + SETTINGS:
        for field, described in form_of(model).schema["properties"].items():
            for each in (described, *described.get("anyOf", [])):
                if each.get("type") in ("integer", "number") and "enum" not in each:
                    limits = ("minimum", "exclusiveMinimum", "maximum")
                    yield model, field, [each[name] for name in limits if name in each]


@pytest.mark.parametrize(
    ("model", "field", "limits"),
    [pytest.param(*each, id=f"{each[0].__name__}.{each[1]}") for each in find_numbers()],
)
def test_who_sends_no_number_is_told_which_numbers_may_be_sent(
    model: type[BaseModel], field: str, limits: list[float]
) -> None:
    for value in ("much", [], {}, float("nan"), "1e999"):
        ((_, allowed),) = refuse(model, field, value)
        assert re.findall(r"-?[0-9][0-9.e+-]*", allowed) == [
            f"{limit}".removesuffix(".0") for limit in limits
        ]


@pytest.mark.parametrize(
    ("model", "sent", "field", "value", "allowed"),
    [
        (GenerationRequest, {"advanced": 5}, "advanced", "5", "an object with the fields num_modules, tile_size_px"),
        (GenerationRequest, {"variations": ["x"]}, "variations.0", '"x"', "an object with the fields seed, amount"),
        (GenerationRequest, {"advanced": {"stages": [{}] * 9}}, "advanced.stages", "[{}", "a list of at most 8 items"),
        (GenerationRequest, {"seamless": "z"}, "seamless", '"z"', "none, x, y or both"),
        (GenerationRequest, {"start_within_s": 0}, "start_within_s", "0", "a number above 0 and up to 2592000"),
        (GenerationRequest, {"upscale": 2}, "upscale", "2", "nothing without `source`"),
        (GenerationRequest, {"fidelity": 0.5}, "fidelity", "0.5", "nothing without `upscale`"),
        (GenerationRequest, {"source": {}, "upscale": 2, "mask": {}}, "mask", "{}", "nothing beside `upscale`"),
        (RerollRequest, {}, "region", "null", "required, an object with the fields rectangle, polygon"),
        (RerollRequest, {"region": {"rectangel": 1}}, "region.rectangel", "1", "no such field; known are rectangle"),
        (ExtendRequest, {}, "left_px", "0", "above 0, here or in `right_px`, `top_px`, `bottom_px`"),
        (ExtendRequest, {"top_px": 0}, "top_px", "0", "above 0, here or in `left_px`, `right_px`, `bottom_px`"),
        (FolderSettings, {"dtype": "int3"}, "dtype", '"int3"', "float32, bfloat16 or float16"),
        (FolderSettings, {"latent_rgb": {"weight": [[1]]}}, "latent_rgb.weight", "[[1]]", "a list of 3 items"),
        (WorkerSettings, {"lease_s": "1"}, "lease_s", '"1"', "a whole number from 2 to 60"),
    ],
)  # fmt: skip
def test_a_refused_value_is_told_with_field_and_what_is_allowed(
    model: type[BaseModel], sent: dict[str, object], field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(sent)
    error = next(each for each in list_refused(refused.value, model) if each.field == field)
    assert error.value.startswith(value)
    assert error.allowed.startswith(allowed)


def test_what_was_sent_twice_wrongly_is_told_twice() -> None:
    with pytest.raises(ValidationError) as refused:
        GenerationRequest.model_validate({"strength": 0.5, "style": {}, "fidelity": 1})
    assert [each.field for each in list_refused(refused.value, GenerationRequest)] == [
        "strength",
        "style",
        "fidelity",
    ]


@pytest.mark.parametrize(
    ("sides", "own_px", "said"),
    [
        ({"left_px": 16_384}, (256, 64), {"left_px": "at most 16128"}),
        (
            {"left_px": 300, "right_px": 16_000},
            (256, 64),
            {"left_px": "at most 128", "right_px": "at most 15828"},
        ),
        ({"bottom_px": 1, "right_px": 9}, (64, 16_384), {"bottom_px": "at most 0"}),
    ],
)
def test_who_extends_too_far_is_told_how_far_each_side_may_go(
    sides: dict[str, int], own_px: tuple[int, int], said: dict[str, str]
) -> None:
    parent = ResolvedRequest(
        model="m", steps=4, guidance_scale=1.0, seed=3, width_px=own_px[0], height_px=own_px[1]
    )
    with pytest.raises(ValidationError) as refused:
        ExtendRequest(**sides).derive("0" * 28, parent)
    errors = list_refused(refused.value, ExtendRequest)
    assert {each.field: each.allowed.partition(":")[0] for each in errors} == said
    assert [each.value for each in errors] == [str(sides[each.field]) for each in errors]


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_told_as_text(text: bytes) -> None:
    with pytest.raises(ValidationError) as refused:
        FolderSettings.model_validate_json(text)
    (error,) = list_refused(refused.value, FolderSettings)
    assert error.allowed.startswith("JSON")
    assert not error.value.startswith("b'")
    assert len(error.value) <= 200
