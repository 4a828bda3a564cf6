"""From a model's source to a model that has sung once on its device."""

from dataclasses import dataclass

import torch

from worker.adapters.errors import ModelError
from worker.adapters.footprint import weigh
from worker.adapters.model import LoadedModel
from worker.adapters.registry import load_found
from worker.adapters.source import ModelSource, find_model
from worker.engine.errors import EngineError
from worker.errors import DeviceRefusedError
from worker.rehearsal import rehearse
from worker.room import find_device, measure_room, require_room

REFUSALS = (ModelError, DeviceRefusedError, EngineError, OSError, RuntimeError)
# Kernels, their work space, and one small batch: what a device needs beside the weights at the least.
_TO_WORK_BYTES = {"cuda": 2 << 30}
_TO_WORK_ELSEWHERE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded model; seconds as `rehearse` measures them."""

    model: LoadedModel
    device: torch.device
    tile_s: float
    decode_s: float


def make_ready(source: ModelSource, device_name: str) -> Ready:
    """Load and rehearse, if the device exists and has room.

    Raises:
        Exception: one of REFUSALS; the message says why.
    """
    device = find_device(device_name)
    found = find_model(source)
    needed = weigh(found.address, device) + _TO_WORK_BYTES.get(device.type, _TO_WORK_ELSEWHERE_BYTES)
    require_room(measure_room(device), needed, f"model {source.model}")
    model = load_found(found, device)
    tile_s, decode_s = rehearse(model)
    return Ready(model, device, tile_s, decode_s)
