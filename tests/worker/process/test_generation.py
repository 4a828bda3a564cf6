"""What a model is told is what the job says, with checked files in the place of names."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from api_schemas.add_ons import ControlSettings, IpAdapterSettings, LoraChoice
from api_schemas.allow_list import AllowedModel
from api_schemas.generation import ResolvedRequest
from worker.adapters.errors import DamagedModelError
from worker.adapters.model import Prompt
from worker.adapters.source import AddOnKind, AddOns
from worker.adapters.toy import Toy
from worker.process.generation import read_conditions
from worker.process.protocol import Generate


@pytest.fixture
def model(tmp_path: Path) -> Toy:
    """A model with one add-on of each kind."""
    weights, edges = tmp_path / "weights.safetensors", tmp_path / "edges"
    edges.mkdir()
    net = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"net"}
    for name, content in net.items():
        (edges / name).write_bytes(content)
    weights.write_bytes(b"weights")
    kinds: dict[str, AddOnKind] = {"ink": "lora", "edges": "controlnet", "face": "ip_adapter"}
    entries: dict[str, AllowedModel] = {}
    for name, kind in kinds.items():
        path, contents = (edges, net) if name == "edges" else (weights, {weights.name: b"weights"})
        files = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        entries[name] = AllowedModel(kind=kind, path=path, base="toy", files=files)
    return Toy(add_ons=AddOns(entries))


def job(folder: Path, **choices: object) -> Generate:
    request = ResolvedRequest.model_validate(
        {"prompt": "p", "model": "toy", "steps": 1, "guidance_scale": 1.0, "seed": 1} | choices
    )
    picture = folder / "control_image.png"
    Image.new("RGB", (3, 2), (10, 20, 30)).save(picture)
    return Generate(request, folder, None, {"control_image": picture, "ip_adapter_image": picture})


def test_names_become_files_and_files_become_pictures(model: Toy, tmp_path: Path) -> None:
    told = read_conditions(
        model,
        job(
            tmp_path,
            loras=[LoraChoice(name="ink", weight=-0.5).model_dump()],
            control=ControlSettings(name="edges", scale=0.5, start=0.25, end=0.75).model_dump(),
            ip_adapter=IpAdapterSettings(name="face", scale=0.1).model_dump(),
        ),
    )
    assert [(lora.path.read_bytes(), lora.weight) for lora in told.loras] == [(b"weights", -0.5)]
    assert told.control is not None
    control = told.control
    assert (control.path.name, control.scale, control.start, control.end) == ("edges", 0.5, 0.25, 0.75)
    assert (control.path / "diffusion_pytorch_model.safetensors").read_bytes() == b"net"
    assert told.ip_adapter is not None
    assert (told.ip_adapter.path.read_bytes(), told.ip_adapter.scale) == (b"weights", 0.1)
    expected = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 2, 3)
    for picture in (control.picture, told.ip_adapter.picture):
        assert picture.dtype == torch.uint8
        assert torch.equal(picture, expected)


def test_a_region_has_the_requests_negative_prompt_unless_it_has_its_own(model: Toy, tmp_path: Path) -> None:
    shape = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 9, "height_px": 9}}
    regions = [{"prompt": "dunes", "shape": shape} | own for own in ({}, {"negative_prompt": ""})]
    told = read_conditions(model, job(tmp_path, negative_prompt="rain", regions=regions))
    assert told.prompts == (Prompt("p", "rain"), Prompt("dunes", "rain"), Prompt("dunes", ""))


def test_without_add_ons_nothing_is_opened(model: Toy, tmp_path: Path) -> None:
    told = read_conditions(model, job(tmp_path))
    assert (told.loras, told.control, told.ip_adapter) == ((), None, None)


def test_a_file_that_is_changed_while_the_worker_runs_is_refused(model: Toy, tmp_path: Path) -> None:
    asked = job(tmp_path, loras=[{"name": "ink"}])
    for _ in range(2):  # the second time nothing need be read
        assert read_conditions(model, asked).loras
    (tmp_path / "weights.safetensors").write_bytes(b"Weights")
    with pytest.raises(DamagedModelError, match=r"weights.safetensors has SHA-256"):
        read_conditions(model, asked)


def test_an_ip_adapter_without_a_picture_is_given_that_of_the_style(model: Toy, tmp_path: Path) -> None:
    asked = job(tmp_path, ip_adapter=IpAdapterSettings(name="face").model_dump())
    styled = replace(asked, inputs={"style_image": tmp_path / "control_image.png"})
    told, own = (read_conditions(model, each).ip_adapter for each in (styled, asked))
    assert told is not None
    assert own is not None
    assert torch.equal(told.picture, own.picture)
