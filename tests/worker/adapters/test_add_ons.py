"""Add-ons are what is on the allow-list, links followed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from api_schemas.allow_list import AllowedModel
from api_schemas.generation import MAX_LORAS
from chorale.allow_list import AllowListFile
from tests.tiny_add_ons import tiny_control_net, tiny_ip_adapter
from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.add_ons import find_weights
from worker.adapters.errors import DamagedModelError, ModelError
from worker.adapters.extras.control_net import ControlNets
from worker.adapters.source import AddOnKind, AddOns


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe = tiny_stable_diffusion(folder)
    tiny_control_net(folder.with_name("edges"), pipe)
    tiny_ip_adapter(folder.with_name("face"), pipe)
    return folder


def enter(path: Path, kind: AddOnKind) -> AllowedModel:
    return AllowListFile(path.with_name("models.json")).add("mine", path, kind, "stable-diffusion")


@pytest.fixture
def add_ons(plain: Path, tmp_path: Path) -> Path:
    """A LoRA, a ControlNet and an IP-Adapter as the hub caches them, files and folders as links."""
    for name in ("edges", "face"):
        shutil.copytree(plain.with_name(name), tmp_path / "blobs" / name)
    (tmp_path / "edges").mkdir()
    for file in (tmp_path / "blobs" / "edges").iterdir():
        (tmp_path / "edges" / file.name).symlink_to(file)
    (tmp_path / "face").mkdir()
    (tmp_path / "face" / "image_encoder").symlink_to(tmp_path / "blobs" / "face" / "image_encoder")
    (tmp_path / "face" / "tiny.safetensors").symlink_to("../blobs/face/tiny.safetensors")
    (tmp_path / "blobs" / "ink").write_bytes(b"weights")
    (tmp_path / "ink.safetensors").symlink_to("blobs/ink")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "path", "files"),
    [
        ("lora", "ink.safetensors", {"ink.safetensors": "ink"}),
        (
            "controlnet", "edges",
            {name: f"edges/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")},
        ),
        *(
            (
                "ip_adapter", path,
                {
                    name: f"face/{name}"
                    for name in ("tiny.safetensors", "image_encoder/config.json", "image_encoder/model.safetensors")
                },
            )
            for path in ("face", "face/tiny.safetensors")
        ),
    ],
)  # fmt: skip
def test_add_ons_are_what_is_on_the_list(
    kind: AddOnKind, path: str, files: dict[str, str], add_ons: Path
) -> None:
    entry = enter(add_ons / path, kind)
    assert entry.files.keys() == files.keys()
    opener = AddOns({"mine": entry})
    (add_ons / "blobs" / "face" / "image_encoder" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (add_ons / "edges" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    found = opener.open(kind, "mine")
    root = found.parent if found.is_file() else found
    assert found.name == (add_ons / path).name
    shown = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}
    assert shown == files.keys()
    assert opener.open(kind, "mine") == found
    for name, blob in files.items():
        kept = (add_ons / "blobs" / blob).read_bytes()
        (add_ons / "blobs" / blob).write_bytes(kept + b" ")
        with pytest.raises(DamagedModelError, match=f"mine: {name} has SHA-256") as refused:
            opener.open(kind, "mine")
        assert str(add_ons) not in str(refused.value)  # clients read it
        (add_ons / "blobs" / blob).write_bytes(kept)
    again = opener.open(kind, "mine")
    assert again.exists()


def test_a_control_net_in_a_variant_is_loaded_and_checked(plain: Path, add_ons: Path) -> None:
    weights = add_ons / "edges" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    entry = enter(add_ons / "edges", "controlnet")
    assert "diffusion_pytorch_model.fp16.safetensors" in entry.files
    opener = AddOns({"mine": entry})
    network = ControlNets(tiny_stable_diffusion(add_ons / "pipe"))._load(opener.open("controlnet", "mine"))
    assert sum(each.numel() for each in network.parameters()) > 0


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (
            "lora",
            lambda folder: os.replace(folder / "ink.safetensors", folder / "ink.bin"),
            "mine: .* is missing",
        ),
        (
            "controlnet",
            lambda folder: (folder / "edges" / "config.json").unlink(),
            "mine: config.json is missing",
        ),
    ],
)
def test_add_ons_that_are_gone_are_named(
    kind: AddOnKind, change: Callable[[Path], object], says: str, add_ons: Path
) -> None:
    entry = enter(add_ons / ("ink.safetensors" if kind == "lora" else "edges"), kind)
    change(add_ons)
    with pytest.raises(ModelError, match=says):
        AddOns({"mine": entry}).open(kind, "mine")


def test_weights_of_a_folder_are_one_file(add_ons: Path) -> None:
    entry = enter(add_ons / "face" / "tiny.safetensors", "lora")
    opener = AddOns({"mine": entry})
    assert find_weights(opener.open("lora", "mine")).path.name == "tiny.safetensors"


def test_copies_are_kept_of_as_many_add_ons_as_one_picture_can_name(add_ons: Path) -> None:
    """A file that others can change is copied; a worker that has opened hundreds has not as many copies."""
    most, scratch = MAX_LORAS + 2, add_ons / "scratch"
    scratch.mkdir(mode=0o700)
    (add_ons / "blobs" / "ink").chmod(0o666)
    entry = enter(add_ons / "ink.safetensors", "lora")
    opener = AddOns({f"ink-{index}": entry for index in range(2 * most)}, scratch)
    opened = [opener.open("lora", f"ink-{index}") for index in range(2 * most)]
    assert [path.is_file() for path in opened] == [False] * most + [True] * most
    assert opener.open("lora", f"ink-{most}") == opened[most]
    assert opener.open("lora", "ink-0").read_bytes() == b"weights"
