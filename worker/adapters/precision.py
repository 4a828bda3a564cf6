"""In what type a pipeline's weights are held."""

from pathlib import Path

import torch

from api_schemas.folder_settings import FolderSettings
from api_schemas.model_files import UPSCALER
from worker.adapters.model_index import read_index, read_object

DENOISERS = ("unet", "transformer", UPSCALER)


def choose_dtypes(folder: Path, settings: FolderSettings, device: torch.device) -> dict[str, torch.dtype]:
    """The settings' own, or bfloat16 on a GPU, and on a CPU if they say so and it has the instructions; else float32.

    Autoencoders with `force_upcast` overflow in float16, so they then stay in float32; so does SDXL's without
    the field, as in diffusers.

    Raises:
        ModelFolderError: the autoencoder's configuration cannot be read.
    """
    narrow = device.type != "cpu" or (settings.cpu_bfloat16 and multiplies_bfloat16())
    default = torch.bfloat16 if narrow else torch.float32
    dtype: torch.dtype = getattr(torch, settings.dtype) if settings.dtype else default
    path = folder / "vae" / "config.json"
    overflows = path.is_file() and bool(read_object(path).get("force_upcast", _is_xl(folder)))
    widen = {"vae": torch.float32} if overflows and dtype == torch.float16 else {}
    return {"default": dtype, **widen}


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; others widen each number first, and are faster in float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _is_xl(folder: Path) -> bool:
    return read_index(folder).kind.startswith("StableDiffusionXL")
