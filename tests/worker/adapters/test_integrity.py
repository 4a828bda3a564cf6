"""What is on the allow-list is what is loaded: links followed, nothing beside it found, nothing exchanged meanwhile."""

import hashlib
import json
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
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.adapters.layouts import as_the_hub_caches_it, save_again
from tests.worker.adapters.test_folders import one_tile
from worker.adapters.errors import DamagedModelError
from worker.adapters.integrity import is_ours, snapshot_listed, snapshot_model
from worker.adapters.model import LoadedModel
from worker.adapters.registry import load_found
from worker.adapters.source import ModelSource, find_model

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
    tiny_stable_diffusion(folder)
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


def enter(folder: Path) -> AllowedModel:
    return AllowListFile(models_file(folder)).add("mine", folder, "model", None)


def models_file(folder: Path) -> Path:
    return folder.parent / "models.json"


def load(folder: Path) -> LoadedModel:
    return load_found(find_model(ModelSource("mine", models_file(folder))), torch.device("cpu"))


def test_a_models_digest_is_of_the_files_that_are_read_listed_or_not(folder: Path) -> None:
    """As `sha256sum` makes it, of itself."""
    entry = enter(folder)
    (folder / "notes.txt").write_text("not read")
    names = sorted(entry.files)
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    listed, bare = (find_model(ModelSource(name, models_file(folder))) for name in ("mine", str(folder)))
    assert listed.digest() == bare.digest() == hashlib.sha256(lines).hexdigest()
    (folder / UNET).write_bytes(b"other")
    assert bare.digest() != listed.digest()


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
