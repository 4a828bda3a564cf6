"""What may be added to a model for one picture, and where its weights lie."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from PIL import Image
from safetensors import safe_open
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
    """A ControlNet and the image whose structure it imposes (Zhang et al. 2023).

    Args:
        path: folder of the ControlNet.
        picture: (3, H, W), uint8, of any size; or (height, width), pixels of a canvas -> what lies on it, (3, height, width),
            uint8, which may be a mapped file.
        start: share of the steps before it begins; `end`: when it ends.
    """

    path: Path
    picture: Tensor | Callable[[tuple[int, int]], Tensor]
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class IpAdapter:
    """An IP-Adapter and the image that conditions the model beside the prompt (Ye et al. 2023).

    Args:
        path: a safetensors file, or a folder with one and with `image_encoder`.
        picture: (3, H, W), uint8, of any size.
        scale: 0 is not at all.
    """

    path: Path
    picture: Tensor
    scale: float = 0.6


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A safetensors file as it was at some time: one that is written to its place later is not equal."""

    path: Path
    mtime_ns: int

    def open(self) -> AbstractContextManager["StoredTensors"]:
        """Its names and shapes, without its numbers."""
        return cast(AbstractContextManager[StoredTensors], safe_open(self.path, "pt"))

    def require_unchanged(self) -> None:
        """Refuse a file that is no longer this one.

        Raises:
            ModelFolderError: it was written again since then, or is gone.
        """
        if not self.path.is_file() or self.path.stat().st_mtime_ns != self.mtime_ns:
            raise ModelFolderError(
                f"{self.path.name} was changed or removed while a picture was made with it"
            )


class StoredShape(Protocol):
    """One tensor of an open safetensors file."""

    def get_shape(self) -> list[int]: ...


class StoredTensors(Protocol):
    """An open safetensors file, for which the library declares no types."""

    def keys(self) -> list[str]: ...

    def metadata(self) -> dict[str, str] | None: ...

    def get_slice(self, name: str) -> StoredShape: ...


def find_weights(path: Path) -> WeightsFile:
    """The one safetensors file of an add-on, which is that file or a folder with it.

    Raises:
        ModelFolderError: there is not exactly one.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ModelFolderError(f"{path.name} must hold one safetensors file; it holds {found}")
    return WeightsFile(files[0], files[0].stat().st_mtime_ns)


def to_pil(picture: Tensor) -> Image.Image:
    """A tensor (3, H, W), uint8, as a PIL image."""
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
