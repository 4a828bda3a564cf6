"""From a model's address to a loaded model: the one list of families."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from worker.adapters.errors import UnknownFamilyError
from worker.adapters.integrity import check_folder
from worker.adapters.model import LoadedModel
from worker.adapters.settings import read_settings

if TYPE_CHECKING:
    from worker.adapters.family import Family

# Pipeline class -> module with `load(folder, device) -> Family`, imported when it is asked for: each
# pulls its own part of diffusers.
_FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "FluxPipeline": "flux",
    "PixArtSigmaPipeline": "pixart_sigma",
    "SanaPipeline": "sana",
    "QwenImagePipeline": "qwen_image",
}


def load_model(address: str, device: str) -> LoadedModel:
    """Load a diffusers folder, or the closed-form model `toy` (`toy:delay_ms=50` for a slow one).

    Raises:
        ModelError: the folder cannot be served; the message says why.
    """
    if address == "toy" or address.startswith("toy:"):
        from worker.adapters.toy import load_toy

        return load_toy(address)
    folder = Path(address)
    return _load_folder(folder, torch.device(device))


def _load_folder(folder: Path, device: torch.device) -> LoadedModel:
    from worker.adapters.family import FamilyModel

    kind = check_folder(folder)
    if kind not in _FAMILIES:
        raise UnknownFamilyError(f"{folder} holds a {kind}; known families: {', '.join(_FAMILIES)}")
    family: Family = import_module(f"worker.adapters.{_FAMILIES[kind]}").load(folder, device)
    return FamilyModel(family, read_settings(folder), folder.resolve().name)
