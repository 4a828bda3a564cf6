"""In what type a pipeline's weights are held."""

from pathlib import Path

import torch

from api_schemas.model_files import UPSCALER
from worker.adapters.model_index import read_index, read_object
from worker.adapters.settings import FolderSettings

DENOISERS = ("unet", "transformer", UPSCALER)


def choose_dtypes(folder: Path, settings: FolderSettings, device: torch.device) -> dict[str, torch.dtype]:
    """float32 on a CPU, bfloat16 elsewhere, or the settings' own.

    Autoencoders with `force_upcast` overflow in float16, so they then stay in float32; so does SDXL's without
    the field, as in diffusers.

    Raises:
        ModelFolderError: the autoencoder's configuration cannot be read.
    """
    default = torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, settings.dtype) if settings.dtype else default
    path = folder / "vae" / "config.json"
    overflows = path.is_file() and bool(read_object(path).get("force_upcast", _is_xl(folder)))
    widen = {"vae": torch.float32} if overflows and dtype == torch.float16 else {}
    return {"default": dtype, **widen}


def _is_xl(folder: Path) -> bool:
    return read_index(folder).kind.startswith("StableDiffusionXL")
