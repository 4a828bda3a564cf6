"""A copy of a tiny folder in which one field is changed."""

import json
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import diffusers
import torch
import transformers
from torch import nn

from tests.conformance.fields import config_file

MISSING = object()
"""As a value: the field is taken out."""


@dataclass(frozen=True, slots=True)
class Together:
    """A value that says something only where other fields of the part are changed too."""

    value: object
    others: dict[str, object]


def change(base: Path, folder: Path, part: str, field: str, value: object) -> Path:
    """Write to `folder` what `base` is, but for one field; where shapes change, weights are drawn again.

    Whatever weights fit are kept, so that a field which changes nothing shows it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in base.iterdir():
        if path.is_dir() and path.name != part:
            (folder / path.name).symlink_to(path)
        else:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    path = folder / part / config_file(part, field)
    if path.suffix == ".jinja":
        path.write_text(str(value))
        return folder
    entries = json.loads(path.read_text())
    changes = {field: value.value, **value.others} if isinstance(value, Together) else {field: value}
    for name, each in changes.items():
        _set(entries, name.removeprefix("tokenizer.json/"), each)
    path.write_text(json.dumps(entries))
    if part and (folder / part / "config.json").is_file():
        _refit(base, folder, part)
    return folder


def _set(entries: dict[str, object], field: str, value: object) -> None:
    outer, _, inner = field.partition(".")
    if inner:
        _set(entries[outer], inner, value)  # pyright: ignore[reportArgumentType]
    elif value is MISSING:
        entries.pop(outer, None)
    else:
        entries[outer] = value


def _refit(base: Path, folder: Path, part: str) -> None:
    """Keep the weights that fit; a configuration that no model can be built of keeps them all."""
    kind, old = _read_weights(base, part)
    torch.manual_seed(7)
    try:
        model = _build(kind, folder / part)
        if {key: each.shape for key, each in model.state_dict().items()} == {
            key: each.shape for key, each in old.items()
        }:
            return
        _keep_fitting(model, old)
    except Exception:  # diffusers says why when it loads the folder
        return
    text = (folder / part / "config.json").read_text()
    for file in (folder / part).glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(folder / part)
    (folder / part / "config.json").write_text(text)


@lru_cache(maxsize=4)
def _read_weights(base: Path, part: str) -> tuple[type, dict[str, torch.Tensor]]:
    library, name = json.loads((base / "model_index.json").read_text())[part]
    kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    return kind, kind.from_pretrained(str(base / part)).state_dict()


def _build(kind: type, folder: Path) -> nn.Module:
    if hasattr(kind, "load_config"):
        return kind.from_config(kind.load_config(str(folder)))
    return kind(kind.config_class.from_pretrained(str(folder)))


def _keep_fitting(model: nn.Module, old: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    fitting = {key: each for key, each in old.items() if key in own and own[key].shape == each.shape}
    model.load_state_dict(fitting, strict=False)
