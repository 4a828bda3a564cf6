"""How much memory a model's weights will take, read from its files before anything is loaded."""

import json
from pathlib import Path

import torch

from api_schemas.folder_settings import FolderSettings
from worker.adapters.errors import ModelFolderError
from worker.adapters.model_index import find_files
from worker.adapters.precision import DENOISERS, choose_dtypes
from worker.adapters.settings import read_settings

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}


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
    dtypes, numbers = choose_dtypes(folder, settings, device), dict[str, int]()
    for shown, name in find_files(folder).items():
        if shown.endswith(".safetensors"):
            part = shown.partition("/")[0]
            numbers[part] = numbers.get(part, 0) + _count_numbers(folder / name)
    return {part: count * _weigh_number(part, settings, dtypes) for part, count in numbers.items()}


def _weigh_number(part: str, settings: FolderSettings, dtypes: dict[str, torch.dtype]) -> int:
    if settings.quantization != "none" and part in DENOISERS:
        return 1
    return dtypes.get(part, dtypes["default"]).itemsize


def _count_numbers(path: Path) -> int:
    """Header of a safetensors file: its length as 8 bytes, little endian, then JSON."""
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
            header = json.loads(file.read(length))
    except ValueError as error:
        raise ModelFolderError(f"{path} is no safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return sum(
        (entry["data_offsets"][1] - entry["data_offsets"][0]) // _ITEM_BYTES.get(entry["dtype"], 1)
        for entry in header.values()
    )
