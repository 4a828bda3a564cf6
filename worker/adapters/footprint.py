"""How much memory a model's weights will take, read from its files before anything is loaded."""

import json
from math import prod
from pathlib import Path

import torch

from api_schemas.folder_settings import FolderSettings, Quantization
from worker.adapters.errors import ModelFolderError
from worker.adapters.float8 import multiplies_in_float8
from worker.adapters.model_index import find_files
from worker.adapters.precision import DENOISERS, choose_dtypes
from worker.adapters.settings import read_settings


def weigh(address: str, device: torch.device) -> int:
    """Bytes of weights that are on the device at the same time, as `load_pipeline` will hold them.

    Raises:
        ModelFolderError: a file is damaged or missing.
    """
    if address.partition(":")[0] == "toy":
        from worker.adapters.toy import parse_toy

        return int(parse_toy(address).weights_gib * (1 << 30))
    folder = Path(address)
    settings = read_settings(folder)
    parts = _weigh_parts(folder, settings, device)
    decoder = parts.pop("vae", 0)
    match settings.offload:
        case "none":
            return decoder + sum(parts.values())
        case "model":
            return decoder + max(parts.values(), default=0)
        case _:
            return decoder


def _weigh_parts(folder: Path, settings: FolderSettings, device: torch.device) -> dict[str, int]:
    dtypes, sizes = choose_dtypes(folder, settings, device), dict[str, int]()
    for shown, name in find_files(folder).items():
        if shown.endswith(".safetensors"):
            part = shown.partition("/")[0]
            dtype = dtypes.get(part, dtypes["default"])
            kind = settings.quantization if part in DENOISERS else "none"
            weights = _read_shapes(folder / name).items()
            size = sum(prod(shape) * _weigh_number(weight, shape, kind, dtype) for weight, shape in weights)
            sizes[part] = sizes.get(part, 0) + size
    return sizes


def _weigh_number(weight: str, shape: list[int], kind: Quantization, dtype: torch.dtype) -> int:
    match kind:
        case "int8" | "float8":
            return 1
        case "float8_products" if multiplies_in_float8(weight, shape):
            return 1
        case _:
            return dtype.itemsize


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Header of a safetensors file: its length as 8 bytes, little endian, then JSON."""
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
            header = json.loads(file.read(length))
    except ValueError as error:
        raise ModelFolderError(f"{path} is no safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return {name: entry["shape"] for name, entry in header.items()}
