"""What a model folder may say about itself beside diffusers' own files: `chorale.json`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from api_schemas.cascade import Cascade
from worker.adapters.errors import ModelFolderError


class LatentRgb(BaseModel):
    """RGB in [0, 1] = weight (3 rows of C) @ latent + bias."""

    weight: list[list[float]]
    bias: list[float]


class FolderSettings(BaseModel):
    """Every field may be left out; then the family's habits and diffusers' configs count."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None = None
    description: str = ""
    license: str = ""
    native_size_px: int | None = None
    tile_sizes_px: list[int] = []
    default_steps: int | None = None
    max_steps: int = 200
    default_guidance_scale: float | None = None
    default_num_modules: int | None = None
    latent_rgb: LatentRgb | None = None
    layout: Literal["cascade", "flat"] = "cascade"
    cascade: Cascade | None = None


def read_settings(folder: Path) -> FolderSettings:
    """Read `chorale.json`, if the folder has one.

    Raises:
        ModelFolderError: a field is of the wrong kind.
    """
    path = folder / "chorale.json"
    if not path.is_file():
        return FolderSettings()
    try:
        return FolderSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {error}") from error
