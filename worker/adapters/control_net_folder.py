"""A ControlNet's folder: nothing missing from its weights, and nothing in them left over."""

from pathlib import Path
from typing import TypeVar

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel

from worker.adapters.errors import ModelFolderError
from worker.adapters.model_index import read_object

N = TypeVar("N", ControlNetModel, FluxControlNetModel)


def load_control_net(kind: type[N], folder: Path, dtype: torch.dtype) -> N:
    """
    Raises:
        ModelFolderError: it is of another kind, cannot be read, or is not whole.
    """
    _require_kind(folder, kind.__name__)
    try:
        network, found = kind.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]  # typed as the network alone
            str(folder),
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFolderError(
            f"{folder.name} cannot be loaded as a {kind.__name__}: {str(error)[:400]}"
        ) from error
    for what, keys in (("has no", found["missing_keys"]), ("has the unknown", found["unexpected_keys"])):
        if keys:
            raise ModelFolderError(
                f"{folder.name} {what} {sorted(keys)[0]}, one of {len(keys)} keys that do not fit its "
                f"configuration; supported: a whole {kind.__name__}"
            )
    return network


def _require_kind(folder: Path, kind: str) -> None:
    config = folder / "config.json"
    found = read_object(config).get("_class_name", kind) if config.is_file() else kind
    if found != kind:
        raise ModelFolderError(f"{folder.name} holds a {found}; this model takes a {kind}")
