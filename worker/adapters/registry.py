"""From a model's address to a loaded model: the one list of families."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from api_schemas.catalog import Dtype
from worker.adapters.errors import UnknownFamilyError
from worker.adapters.integrity import snapshot_folder, snapshot_model
from worker.adapters.model import LoadedModel
from worker.adapters.model_index import read_index
from worker.adapters.settings import overriding_dtype, read_settings
from worker.adapters.source import FoundModel, ModelSource, find_model

if TYPE_CHECKING:
    from worker.adapters.family import Family

# Pipeline class -> module with `load(folder, device) -> Family`, imported when it is asked for: each
# pulls its own part of diffusers.
_FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl",
    "StableDiffusionInpaintPipeline": "stable_diffusion",
    "StableDiffusionXLInpaintPipeline": "stable_diffusion_xl",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "FluxPipeline": "flux",
    "PixArtSigmaPipeline": "pixart_sigma",
    "SanaPipeline": "sana",
    "QwenImagePipeline": "qwen_image",
    "ZImagePipeline": "z_image",
    "Flux2Pipeline": "flux_2",
    "Flux2KleinPipeline": "flux_2",
}


def load_model(address: str, device: str, dtype: Dtype | None = None) -> LoadedModel:
    """Load a diffusers folder, or the closed-form model `toy` (`toy:delay_ms=50` for a slow one).

    Args:
        dtype: that takes the place of the folder's.

    Raises:
        ModelError: the folder cannot be served; the message says why.
    """
    return load_found(find_model(ModelSource(address, dtype=dtype)), torch.device(device))


def load_found(found: FoundModel, device: torch.device) -> LoadedModel:
    """Load what `find_model` found, with the add-ons that fit its family.

    Raises:
        ModelError: it cannot be served; the message says why.
    """
    if found.address.partition(":")[0] == "toy":
        from worker.adapters.toy import load_toy

        return load_toy(found.address, found.add_ons("toy"))
    folder = Path(found.address)
    if found.name is not None and found.entry is not None:
        checked = snapshot_model(found.name, found.entry, found.scratch)
    else:
        checked = snapshot_folder(folder, found.scratch)
    with checked as snapshot, overriding_dtype(found.dtype):
        return _load_folder(found, snapshot, device, folder.resolve().name)


def _load_folder(found: FoundModel, folder: Path, device: torch.device, name: str) -> LoadedModel:
    from worker.adapters.family_model import FamilyModel

    kind = read_index(folder).kind
    if kind not in _FAMILIES:
        raise UnknownFamilyError(f"{folder} holds a {kind}; known families: {', '.join(_FAMILIES)}")
    family: Family = import_module(f"worker.adapters.families.{_FAMILIES[kind]}").load(folder, device)
    settings = read_settings(folder)
    if found.name is not None:  # what the operator calls it goes before what the folder says
        settings = settings.model_copy(update={"name": found.name})
    return FamilyModel(family, settings, name, found.add_ons(family.name))
