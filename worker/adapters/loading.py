"""From a checked folder to a diffusers pipeline on its device."""

from pathlib import Path
from typing import TypeVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from worker.adapters.errors import ModelFolderError

Pipe = TypeVar("Pipe", bound=DiffusionPipeline)


def load_pipeline(kind: type[Pipe], folder: Path, device: torch.device, **parts: bool | None) -> Pipe:
    """Load in float32 on a CPU, in bfloat16 elsewhere; safetensors only.

    Args:
        parts: of the pipeline that are to be left out.

    Raises:
        ModelFolderError: diffusers cannot load the folder.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        pipe = kind.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, **parts
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFolderError(f"{folder} cannot be loaded as a {kind.__name__}: {error}") from error
    return pipe.to(device)
