"""From a model's address to a loaded model: the one list of families."""

from collections.abc import Callable
from pathlib import Path

import torch

from worker.adapters.errors import UnknownFamilyError
from worker.adapters.integrity import check_folder
from worker.adapters.model import LoadedModel


def load_model(address: str, device: str) -> LoadedModel:
    """Load a diffusers folder, or the closed-form model `toy` (`toy:delay_ms=50` for a slow one).

    Raises:
        ModelError: the folder cannot be served; the message says why.
    """
    if address == "toy" or address.startswith("toy:"):
        from worker.adapters.toy import load_toy

        return load_toy(address)
    folder = Path(address)
    family = check_folder(folder)
    if family not in _FAMILIES:
        raise UnknownFamilyError(f"{folder} holds a {family}; known families: {', '.join(_FAMILIES)}")
    return _FAMILIES[family](folder, torch.device(device))


def _load_stable_diffusion(folder: Path, device: torch.device) -> LoadedModel:
    from worker.adapters.stable_diffusion import load_stable_diffusion

    return load_stable_diffusion(folder, device)


# A family is imported when it is asked for: each pulls its own part of diffusers.
_FAMILIES: dict[str, Callable[[Path, torch.device], LoadedModel]] = {
    "StableDiffusionPipeline": _load_stable_diffusion,
}
