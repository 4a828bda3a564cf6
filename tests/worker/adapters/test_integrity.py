"""What is on the allow-list is what is loaded: links followed, nothing beside it found, nothing exchanged meanwhile."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from api_schemas.allow_list import AllowedModel
from chorale.allow_list import AllowListFile
from tests.tiny_add_ons import tiny_control_net, tiny_ip_adapter
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.adapters.test_folders import as_the_hub_caches_it, one_tile, save_again
from worker.adapters.add_ons import find_weights
from worker.adapters.control_net import ControlNets
from worker.adapters.errors import DamagedModelError, ModelError
from worker.adapters.integrity import snapshot_listed, snapshot_model
from worker.adapters.model import LoadedModel
from worker.adapters.ownership import is_ours
from worker.adapters.registry import load_found
from worker.adapters.source import AddOns, ModelSource, find_model

UNET = "unet/diffusion_pytorch_model.safetensors"
_opened: list[str] | None = None


def _record(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hooks stay for ever; this one mostly does nothing."""
    if _opened is not None and event == "open" and isinstance(arguments[0], str | Path):
        _opened.append(str(arguments[0]))


@contextmanager
def recorded() -> Iterator[list[str]]:
    """What Python opens within the block."""
    global _opened
    sys.addaudithook(_record)
    _opened = opened = []
    try:
        yield opened
    finally:
        _opened = None


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe = tiny_stable_diffusion(folder)
    tiny_control_net(folder.with_name("edges"), pipe)
    tiny_ip_adapter(folder.with_name("face"), pipe)
    return folder


@pytest.fixture(scope="module")
def expected(plain: Path) -> Tensor:
    return one_tile(load_found(find_model(ModelSource(str(plain))), torch.device("cpu")))


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "tiny"))


def as_it_is(folder: Path) -> None:
    assert folder.is_dir()


def with_a_linked_part(folder: Path) -> None:
    """Outside of the folder."""
    (folder / "unet").rename(folder.with_name("elsewhere"))
    (folder / "unet").symlink_to("../elsewhere", target_is_directory=True)


def as_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere", target_is_directory=True)


def in_variants_and_shards(folder: Path) -> None:
    save_again(folder, variant="fp16", max_shard_size="60KB")


def which_anyone_can_change(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)


LAYOUTS: tuple[Callable[[Path], None], ...] = (
    as_it_is, with_a_linked_part, as_a_link, as_the_hub_caches_it, in_variants_and_shards, which_anyone_can_change,
)  # fmt: skip
each_layout = pytest.mark.parametrize("change", LAYOUTS, ids=lambda change: change.__name__)


def enter(folder: Path, kind: str = "model", name: str = "mine") -> AllowedModel:
    base = None if kind == "model" else "stable-diffusion"
    return AllowListFile(models_file(folder)).add(name, folder, kind, base)  # pyright: ignore[reportArgumentType]


def models_file(folder: Path) -> Path:
    return folder.parent / "models.json"


def load(folder: Path) -> LoadedModel:
    return load_found(find_model(ModelSource("mine", models_file(folder))), torch.device("cpu"))


@each_layout
def test_listed_files_are_enough_and_nothing_beside_them_is_found(
    change: Callable[[Path], None], folder: Path, expected: Tensor
) -> None:
    change(folder)
    entry = enter(folder)
    for part in ("", "unet", "text_encoder", "tokenizer", "more"):
        (folder / part).mkdir(exist_ok=True)
        for name in ("pytorch_model.bin", "diffusers.py", "notes.md", "old.ckpt", "model.ema.safetensors"):
            (folder / part / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    (folder / "README.txt").write_text("not read")
    assert torch.equal(one_tile(load(folder)), expected)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in entry.files:
            path.unlink()
    assert torch.equal(one_tile(load(folder)), expected)
    with snapshot_model("mine", entry, None) as shown:
        seen = [path.relative_to(shown) for path in shown.rglob("*") if path.is_file()]
    assert len(seen) == len(entry.files)


@each_layout
def test_each_listed_file_that_is_changed_or_gone_is_named(
    change: Callable[[Path], None], folder: Path
) -> None:
    change(folder)
    files = enter(folder).files
    assert {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"} <= files.keys()
    assert sum(name.endswith(".safetensors") for name in files) >= 3
    for name in files:
        path = (folder / name).resolve()
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(DamagedModelError, match=f"mine: {name} has SHA-256 .*, expected {files[name]}"):
            load(folder)
        path.unlink()
        with pytest.raises(DamagedModelError, match=f"mine: {name} is missing"):
            load(folder)
        path.write_bytes(kept)
    load(folder)


def test_a_link_that_leads_elsewhere_later_is_found_out(folder: Path) -> None:
    with_a_linked_part(folder)
    enter(folder)
    other = Path(shutil.copytree(folder.with_name("elsewhere"), folder.with_name("other")))
    weights = other / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (folder / "unet").unlink()
    (folder / "unet").symlink_to(other, target_is_directory=True)
    with pytest.raises(DamagedModelError, match=f"mine: {UNET} has SHA-256"):
        load(folder)
    (folder / "unet").unlink()
    (folder / "unet").symlink_to(folder / "unet")  # in a circle
    with pytest.raises(DamagedModelError, match=r"mine: unet/config\.json is missing"):
        load(folder)


def test_a_file_that_would_now_be_read_instead_is_named(folder: Path) -> None:
    save_again(folder, variant="fp16")
    enter(folder)
    variant = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    (folder / UNET).write_bytes(variant.read_bytes())
    with pytest.raises(
        DamagedModelError, match=f"not on the allow-list: {UNET}; if they are meant, add it again"
    ):
        load(folder)


def test_what_python_opens_is_on_the_list(folder: Path) -> None:
    """Rust opens weights and vocabularies, unseen by this hook: the test above has them alone in the folder."""
    with_a_linked_part(folder)
    entry = enter(folder)
    scratch = folder.parent / "scratch"
    scratch.mkdir()
    found = find_model(ModelSource("mine", models_file(folder), scratch))
    with recorded() as opened:
        load_found(found, torch.device("cpu"))
    paths = {Path(name) for name in opened if name.startswith(str(folder.parent))}
    inside = {path for path in paths if path.is_relative_to(scratch)}
    assert paths - inside == {folder / "model_index.json"}  # to see whether something was added
    shown = {"/".join(path.relative_to(scratch).parts[2:]) for path in inside}
    assert {"model_index.json", "unet/config.json", "vae/config.json"} <= shown <= {"", *entry.files}
    assert list(scratch.iterdir()) == []


def test_a_file_that_others_can_change_is_loaded_from_a_copy(folder: Path, tmp_path: Path) -> None:
    """What they write after the check is not what is loaded, in place or by another file of the name."""
    (folder / UNET).chmod(0o666)
    entry = enter(folder)
    kept = (folder / UNET).read_bytes()
    with snapshot_model("mine", entry, tmp_path) as shown:
        with (folder / UNET).open("r+b") as file:
            file.write(b"other")
        (folder / "vae").rename(folder / "gone")
        assert (shown / UNET).read_bytes() == kept
        assert not (shown / UNET).is_symlink()
        assert (shown / "vae").is_dir()
        assert shown.parent.stat().st_mode & 0o077 == 0
    assert not shown.exists()


@pytest.mark.parametrize("loose", ["", "unet", UNET])
def test_who_can_change_a_file_is_seen_from_all_that_leads_to_it(loose: str, folder: Path) -> None:
    assert is_ours(folder / UNET)
    (folder / loose).chmod(0o757)
    assert not is_ours(folder / UNET)
    assert is_ours(folder / "vae" / "config.json") == (loose != "")
    (folder / loose).chmod(0o755)
    assert is_ours(folder / UNET)
    (folder / "link").symlink_to("unet", target_is_directory=True)
    assert not is_ours(folder / "link" / "config.json")


def test_a_folder_for_scratch_that_others_can_write_to_is_not_used(folder: Path, tmp_path: Path) -> None:
    entry = enter(folder)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch").chmod(0o777)
    snapshot = snapshot_listed("mine", entry, tmp_path / "scratch")
    assert is_ours(snapshot.path)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_lists_that_were_made_before_go_on_or_say_what_to_do(folder: Path, expected: Tensor) -> None:
    """They held all files with certain endings, and none behind a link to a folder."""
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    (folder / "LICENSE.txt").write_text("do as you like")
    entry = enter(folder)
    digests = {
        name: enter_digest(folder / name)
        for name in ("LICENSE.txt", "unet/diffusion_pytorch_model.fp16.safetensors")
    }
    write(folder, entry.model_copy(update={"files": entry.files | digests}))
    assert torch.equal(one_tile(load(folder)), expected)
    unlinked = {name: digest for name, digest in entry.files.items() if not name.startswith("unet/")}
    write(folder, entry.model_copy(update={"files": unlinked}))
    with pytest.raises(DamagedModelError, match=r"not on the allow-list: unet/config\.json.*add it again"):
        load(folder)


def enter_digest(path: Path) -> str:
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def write(folder: Path, entry: AllowedModel) -> None:
    models_file(folder).write_text(json.dumps({"models": {"mine": entry.model_dump(mode="json")}}))


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
def test_add_ons_are_what_is_on_the_list(kind: str, path: str, files: dict[str, str], add_ons: Path) -> None:
    entry = enter(add_ons / path, kind)
    assert entry.files.keys() == files.keys()
    opener = AddOns({"mine": entry})
    (add_ons / "blobs" / "face" / "image_encoder" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (add_ons / "edges" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    found = opener.open(kind, "mine")  # pyright: ignore[reportArgumentType]
    root = found.parent if found.is_file() else found
    assert found.name == (add_ons / path).name
    shown = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}
    assert shown == files.keys()
    assert opener.open(kind, "mine") == found  # pyright: ignore[reportArgumentType]
    for name, blob in files.items():
        kept = (add_ons / "blobs" / blob).read_bytes()
        (add_ons / "blobs" / blob).write_bytes(kept + b" ")
        with pytest.raises(DamagedModelError, match=f"mine: {name} has SHA-256") as refused:
            opener.open(kind, "mine")  # pyright: ignore[reportArgumentType]
        assert str(add_ons) not in str(refused.value)  # clients read it
        (add_ons / "blobs" / blob).write_bytes(kept)
    again = opener.open(kind, "mine")  # pyright: ignore[reportArgumentType]
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
    kind: str, change: Callable[[Path], object], says: str, add_ons: Path
) -> None:
    entry = enter(add_ons / ("ink.safetensors" if kind == "lora" else "edges"), kind)
    change(add_ons)
    with pytest.raises(ModelError, match=says):
        AddOns({"mine": entry}).open(kind, "mine")  # pyright: ignore[reportArgumentType]


def test_weights_of_a_folder_are_one_file(add_ons: Path) -> None:
    entry = enter(add_ons / "face" / "tiny.safetensors", "lora")
    opener = AddOns({"mine": entry})
    assert find_weights(opener.open("lora", "mine")).name == "tiny.safetensors"
