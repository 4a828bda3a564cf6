"""The operator's list of models and add-ons that workers may load, each file with its digest."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

ModelKind = Literal["model", "lora", "controlnet", "ip_adapter"]
AllowedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

# What a model folder says of itself.
JSON_OBJECT: Final = TypeAdapter(dict[str, object])
# `someone/model`: as the hub calls it, or a folder two levels down.
HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
# As adapters call them; an add-on fits one of them.
FAMILIES: Final = (
    "stable-diffusion",
    "stable-diffusion-xl",
    "stable-diffusion-3",
    "flux",
    "flux-2",
    "pixart-sigma",
    "sana",
    "qwen-image",
    "z-image",
    "toy",
)
# Pickles and Python run code when they are loaded.
REFUSED_SUFFIXES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".py"})
# Weights, configurations, vocabularies: all that decides what is computed.
_COVERED_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model"})


class AllowedModel(BaseModel):
    """One entry.

    Args:
        path: a folder, or one safetensors file.
        base: family that an add-on fits; None for models.
        files: SHA-256 by path below the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ModelKind
    path: Path
    base: str | None = None
    files: dict[str, str]

    @property
    def root(self) -> Path:
        """Folder that the names of `files` are relative to."""
        return self.path.parent if self.path.suffix == ".safetensors" else self.path


class AllowList(BaseModel):
    """All entries by name, as the file holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[AllowedName, AllowedModel] = {}


def covered_files(path: Path) -> Iterator[str]:
    """Names of the files that an entry for `path` has digests of, in order."""
    if path.is_file():
        yield path.name
        return
    for file in sorted(path.rglob("*")):
        if file.suffix in _COVERED_SUFFIXES and file.is_file():
            yield file.relative_to(path).as_posix()


def refused_files(path: Path) -> list[str]:
    """Names of files that would run code when loaded."""
    return sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix in REFUSED_SUFFIXES
    )
