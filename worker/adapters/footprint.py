"""How much memory a model's weights will take, read from its files before anything is loaded."""

import json
from pathlib import Path

import torch

from worker.adapters.toy import parse_toy

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}


def weigh(address: str, device: torch.device) -> int:
    """Bytes of all weights as `load_pipeline` will hold them: float32 on a CPU, bfloat16 elsewhere.

    Files with a variant in their name (`model.fp16.safetensors`) are not loaded, so not counted.
    """
    if address.partition(":")[0] == "toy":
        return int(parse_toy(address).weights_gib * (1 << 30))
    files = [path for path in Path(address).glob("*/*.safetensors") if path.name.count(".") == 1]
    return sum(_count_numbers(path) for path in files) * (4 if device.type == "cpu" else 2)


def _count_numbers(path: Path) -> int:
    """Header of a safetensors file: its length as 8 bytes, little endian, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return sum(
        (entry["data_offsets"][1] - entry["data_offsets"][0]) // _ITEM_BYTES.get(entry["dtype"], 1)
        for entry in header.values()
    )
