"""The operator's allow-list: what may be loaded on this machine, with a digest of each file."""

import hashlib
import os
from pathlib import Path

from pydantic import ValidationError

from api_schemas.allow_list import (
    FAMILIES,
    HUB_NAME,
    AllowedModel,
    AllowList,
    ControlKind,
    ModelKind,
)
from api_schemas.folder_settings import read_folder_settings
from api_schemas.model_files import Folder, FolderError
from api_schemas.refused_values import tell_refused
from chorale.errors import AllowListError


class AllowListFile:
    """One JSON file, created with the first entry."""

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
            return AllowList.model_validate_json(self.path.read_bytes(), extra="ignore")
        except ValidationError as error:
            raise AllowListError(f"{self.path} is no allow-list: {tell_refused(error, AllowList)}") from error

    def add(
        self, name: str, path: Path, kind: ModelKind, base: str | None, control: ControlKind | None = None
    ) -> AllowedModel:
        """Enter a folder or file with the digests that it has now; an earlier entry is replaced.

        A link is stored as a link: its target is resolved when the model is loaded.

        Raises:
            AllowListError: it cannot be loaded, is not there, or has no sound name.
        """
        if kind == "model":
            _refuse_hub_name(path)
        if control is not None and kind != "controlnet":
            raise AllowListError(f"--control {control} is for --kind controlnet; this is a {kind}")
        entry = _inspect(path.expanduser().absolute(), kind, base).model_copy(update={"control": control})
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
    if not path.exists():
        raise AllowListError(f"{path}: there is no such file or folder")
    if not path.is_dir() and not (
        path.is_file() and path.suffix == ".safetensors" and kind in ("lora", "ip_adapter")
    ):
        one = " or one .safetensors file" if kind in ("lora", "ip_adapter") else ""
        raise AllowListError(f"{path}: a {kind} is a folder{one}")
    entry = AllowedModel(kind=kind, path=path, base=base, files={})
    try:
        if kind == "model":
            read_folder_settings(entry.root)
        read = entry.choose_files(Folder.on_disk(entry.root)).values()
    except FolderError as error:
        raise AllowListError(str(error)) from error
    return entry.model_copy(update={"files": {name: _digest(entry.root / name) for name in sorted(read)}})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
