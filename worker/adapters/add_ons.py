"""What may be added to a model for one picture, and where its weights lie."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from worker.adapters.errors import ModelFolderError


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank changes to a model's weights (Hu et al. 2021).

    Args:
        path: a safetensors file, or a folder with one.
        weight: how strongly they count; 0 is not at all.
    """

    path: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Control:
    """A picture whose structure is followed (Zhang et al. 2023).

    Args:
        path: folder of the ControlNet.
        picture: (3, H, W), uint8, of any size.
        start: share of the steps before it begins; `end`: when it ends.
    """

    path: Path
    picture: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class IpAdapter:
    """A picture that conditions the model beside the prompt (Ye et al. 2023).

    Args:
        path: a safetensors file, or a folder with one and with `image_encoder`.
        picture: (3, H, W), uint8, of any size.
        scale: 0 is not at all.
    """

    path: Path
    picture: Tensor
    scale: float = 0.6


def find_weights(path: Path) -> Path:
    """
    Raises:
        ModelFolderError: there is not exactly one safetensors file.
    """
    if path.is_file():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ModelFolderError(f"{path.name} must hold one safetensors file; it holds {found}")
    return files[0]


def stamp(path: Path) -> tuple[Path, int]:
    """What changes when somebody writes another file to the same place."""
    return path, path.stat().st_mtime_ns


def to_pil(picture: Tensor) -> Image.Image:
    """From (3, H, W), uint8."""
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
