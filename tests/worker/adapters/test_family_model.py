"""A prepared model predicts what it predicts alone, whatever is prepared from the same weights meanwhile."""

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny_add_ons import tiny_ip_adapter, tiny_lora
from tests.worker.adapters.families.unets import ADD_ON_CASES, PROMPT, UNetCase
from worker.adapters.add_ons import IpAdapter, Lora
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.generate import PreparedModel, Progress, generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import Picture
from worker.engine.stitch import Band

IMAGE = torch.randint(256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
CANVAS = DenoisePlan(Plane(16, 20, (False, True)), 16, 0, 0, moving=True, seed=3)
PLAN = GenerationPlan(
    3, 4, (StagePlan(CANVAS, 1), StagePlan(CANVAS, 1, Picture(1))), DecodePlan(tile_size=16)
)


@pytest.fixture(scope="module", params=ADD_ON_CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> UNetCase:
    return request.param


@pytest.fixture(scope="module")
def folder(case: UNetCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_ip_adapter(folder.with_name("adapter"), case.build(folder))
    for seed in (1, 2):
        tiny_lora(folder.parent, case.build(folder.with_name("spoilt")), seed=seed)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(str(folder), "cpu")


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[Conditions]:
    """Nothing, LoRAs, an IP-Adapter, both; some share a file at another strength."""
    first, second = (folder.parent / f"tiny-{seed}.safetensors" for seed in (1, 2))
    adapter = folder.with_name("adapter")
    return [
        Conditions(PROMPT, "moss", 5.0),
        Conditions(PROMPT, "moss", 5.0, loras=(Lora(first),)),
        Conditions(PROMPT, "moss", 5.0, loras=(Lora(second, 0.5), Lora(first, -0.7))),
        Conditions(PROMPT, "moss", 5.0, ip_adapter=IpAdapter(adapter, IMAGE, 0.7)),
        Conditions(PROMPT, "moss", 5.0, loras=(Lora(second),), ip_adapter=IpAdapter(adapter, IMAGE, 0.3)),
        Conditions(PROMPT, "moss", 5.0, loras=(Lora(first, 0.0),)),
    ]


def make_picture(prepared: PreparedModel) -> Tensor:
    return collect(generate(PLAN, prepared))


def collect(events: Iterator[Progress]) -> Tensor:
    return torch.cat([event.rows for event in events if isinstance(event, Band)])


def test_pictures_that_are_made_by_turns_are_those_that_are_made_alone(
    model: LoadedModel, asked: list[Conditions]
) -> None:
    alone = [make_picture(model.prepare(each)) for each in asked]
    prepared = [model.prepare(each) for each in asked]
    turns = zip_longest(*(generate(PLAN, each) for each in prepared))
    rows: list[list[Tensor]] = [[] for _ in asked]
    for events in turns:
        for mine, event in zip(rows, events, strict=True):
            mine.extend([event.rows] if isinstance(event, Band) else [])
    for mine, expected in zip(rows, alone, strict=True):
        assert torch.equal(torch.cat(mine), expected)
    for index, expected in enumerate(alone[1:5], 1):
        assert not any(torch.equal(expected, other) for other in alone[:index])
    assert torch.equal(alone[0], alone[5])


def test_a_prepared_model_stays_valid_after_one_that_is_refused(
    model: LoadedModel, asked: list[Conditions], folder: Path
) -> None:
    expected = [make_picture(model.prepare(each)) for each in asked[1:4]]
    prepared = [model.prepare(each) for each in asked[1:4]]
    foreign = folder / "vae" / "diffusion_pytorch_model.safetensors"
    for refused in (
        Conditions(PROMPT, loras=(Lora(foreign),)),
        Conditions(PROMPT, ip_adapter=IpAdapter(foreign, IMAGE)),
    ):
        with pytest.raises(ModelFolderError):
            model.prepare(refused)
    for each, picture in zip(prepared, expected, strict=True):
        assert torch.equal(make_picture(each), picture)


def test_an_add_on_that_was_changed_meanwhile_is_named_and_not_mixed_in(
    model: LoadedModel, asked: list[Conditions], folder: Path
) -> None:
    for conditions, name in ((asked[1], "tiny-1.safetensors"), (asked[3], "adapter/tiny.safetensors")):
        file = folder.parent / name
        written = file.stat()
        prepared = model.prepare(conditions)
        model.prepare(asked[0])
        os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns + 1_000_000_000))
        with pytest.raises(ModelFolderError, match=rf"{file.name} was changed or removed"):
            make_picture(prepared)
        os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
        assert make_picture(prepared).shape == (64, 80, 3)
