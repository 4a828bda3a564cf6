"""The operator's allow-list: what may be loaded on this machine, with a digest of each file."""

import hashlib
import os
from pathlib import Path

from pydantic import ValidationError

from api_schemas.allow_list import (
    FAMILIES,
    HUB_NAME,
    JSON_OBJECT,
    AllowedModel,
    AllowList,
    ModelKind,
    covered_files,
    refused_files,
)
from chorale.errors import AllowListError

_NEEDED = {
    "model": "model_index.json",
    "lora": "*.safetensors",
    "controlnet": "config.json",
    "ip_adapter": "*.safetensors",
}


class AllowListFile:
    """One JSON file; there need not be one before the first entry."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> AllowList:
        """
        Raises:
            AllowListError: the file is not one.
        """
        if not self.path.is_file():
            return AllowList()
        try:
            return AllowList.model_validate_json(self.path.read_bytes())
        except ValidationError as error:
            raise AllowListError(f"{self.path} is no allow-list: {error}") from error

    def add(self, name: str, path: Path, kind: ModelKind, base: str | None) -> AllowedModel:
        """Enter a folder or file with the digests that it has now; an earlier entry is replaced.

        Raises:
            AllowListError: it would run code, lacks what its kind needs, is not there, or has no sound name.
        """
        if kind == "model":
            _refuse_hub_name(path)
        entry = _inspect(path.expanduser().resolve(), kind, base)
        self._write(name, self.read().models | {name: entry})
        return entry

    def remove(self, name: str) -> None:
        """
        Raises:
            AllowListError: there is no such entry.
        """
        models = self.read().models
        if name not in models:
            raise AllowListError(f"{name} is not on the allow-list; listed are {', '.join(models) or 'none'}")
        self._write(name, {other: entry for other, entry in models.items() if other != name})

    def _write(self, name: str, models: dict[str, AllowedModel]) -> None:
        try:
            allow_list = AllowList(models=models)
        except ValidationError as error:
            allowed = "letters, digits, dots, dashes and underscores, at most 100, a letter or digit first"
            raise AllowListError(f"name {name!r}: {allowed}") from error
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(allow_list.model_dump_json(indent=2))
        os.replace(partial, self.path)


def _refuse_hub_name(path: Path) -> None:
    if HUB_NAME.fullmatch(str(path)) and not path.exists():
        raise AllowListError(
            f"{path} is no folder, and only folders are listed;"
            f" a model of that name on the hub needs no entry: chorale up --model {path}"
        )


def _inspect(path: Path, kind: ModelKind, base: str | None) -> AllowedModel:
    if (kind == "model") == (base is not None):
        said = "a model has no --base" if base else f"a {kind} needs --base, the family that it was made for"
        raise AllowListError(said)
    if base is not None and base not in FAMILIES:
        raise AllowListError(f"--base {base}: no such family; known are {', '.join(FAMILIES)}")
    if path.is_dir():
        _require_folder(path, kind)
    elif not (path.is_file() and path.suffix == ".safetensors" and kind in ("lora", "ip_adapter")):
        one = " or one .safetensors file" if kind in ("lora", "ip_adapter") else ""
        raise AllowListError(f"{path}: a {kind} is a folder{one}")
    root = path if path.is_dir() else path.parent
    return AllowedModel(
        kind=kind, path=path, base=base, files={name: _digest(root / name) for name in covered_files(path)}
    )


def _require_folder(folder: Path, kind: ModelKind) -> None:
    if refused := refused_files(folder):
        raise AllowListError(
            f"{folder} holds what would run code when loaded ({', '.join(refused)}): only safetensors are taken"
        )
    if next(folder.glob(_NEEDED[kind]), None) is None:
        raise AllowListError(f"{folder} is no {kind}: {_NEEDED[kind]} is missing")
    if next(folder.rglob("*.safetensors"), None) is None:
        raise AllowListError(f"{folder} is no {kind}: it holds no .safetensors file")
    if kind == "model":
        _refuse_remote_code(folder)


def _refuse_remote_code(folder: Path) -> None:
    """A part of a pipeline is [library, class]; any other library would be code of the folder's own."""
    for part, value in _read_object(folder / "model_index.json").items():
        if isinstance(value, list) and value[:1] not in (["diffusers"], ["transformers"], [None]):
            raise AllowListError(f"{folder} asks for code of its own: {part} is of {value[0]}")


def _read_object(path: Path) -> dict[str, object]:
    try:
        return JSON_OBJECT.validate_json(path.read_bytes())
    except ValidationError as error:
        raise AllowListError(f"{path}: {error.errors()[0]['msg']}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
