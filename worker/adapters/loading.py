"""From a checked folder to a diffusers pipeline on its device."""

from pathlib import Path
from typing import TypeVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from worker.adapters.configuration import check_configuration
from worker.adapters.errors import ModelFolderError
from worker.adapters.placement import (
    check_offload,
    choose_quantization,
    place,
    store_in_float8,
)
from worker.adapters.precision import choose_dtypes
from worker.adapters.settings import read_settings

Pipe = TypeVar("Pipe", bound=DiffusionPipeline)


def load_pipeline(kind: type[Pipe], folder: Path, device: torch.device, **parts: bool | None) -> Pipe:
    """Load as the folder's `chorale.json` asks; safetensors only.

    Args:
        parts: of the pipeline that are to be left out.

    Raises:
        ModelFolderError: diffusers cannot load the folder, or not as asked, or makes no picture of it.
    """
    settings = read_settings(folder)
    check_offload(folder, settings.offload, device)
    quantization = choose_quantization(folder, settings)
    try:
        pipe = kind.from_pretrained(
            str(folder), dtype=choose_dtypes(folder, settings, device), quantization_config=quantization,
            use_safetensors=True, local_files_only=True, **parts,
        )  # fmt: skip
    except Exception as error:  # whatever diffusers, transformers and safetensors make of a broken folder
        raise ModelFolderError(f"{folder} cannot be loaded as a {kind.__name__}: {error}") from error
    check_configuration(pipe)
    if settings.quantization == "float8":
        store_in_float8(pipe)
    place(pipe, settings.offload, device)
    return pipe
