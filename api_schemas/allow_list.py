"""The operator's list of models and add-ons that workers may load, each file with its digest."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.model_files import Files, Folder, choose_add_on_files, choose_model_files

ModelKind = Literal["model", "lora", "controlnet", "ip_adapter"]
ControlKind = Literal["tile"]
AllowedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

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


class AllowedModel(BaseModel):
    """One entry.

    Args:
        path: a folder, or one safetensors file.
        base: family that an add-on fits; None for models.
        control: what a ControlNet was made for, where that matters: a source is enlarged with one for tiles.
        files: SHA-256 by path below the folder, of what is read; links followed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ModelKind
    path: Path
    base: str | None = None
    control: ControlKind | None = None
    files: dict[str, str]

    @property
    def root(self) -> Path:
        """Folder that the names of `files` are relative to."""
        return self.path.parent if self._file else self.path

    def choose_files(self, folder: Folder) -> Files:
        """What its loader reads of a folder, which is this one or another state of it.

        Raises:
            FolderError: it cannot be loaded.
        """
        if self.kind == "model":
            return choose_model_files(folder)
        return choose_add_on_files(folder, self.kind, self._file)

    @property
    def _file(self) -> str | None:
        return self.path.name if self.path.suffix == ".safetensors" else None


class AllowList(BaseModel):
    """All entries by name, as the file holds them; fields that another version has written are ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[AllowedName, AllowedModel] = {}
