"""From a model's source to a model that has sung once on its device."""

import logging
from dataclasses import dataclass

import torch

from api_schemas.catalog import ModelCard
from worker.adapters.errors import ModelError
from worker.adapters.footprint import weigh
from worker.adapters.model import LoadedModel
from worker.adapters.registry import load_found
from worker.adapters.source import ModelSource, find_model
from worker.engine.errors import EngineError
from worker.errors import DeviceRefusedError
from worker.rehearsal import Rehearsal, rehearse
from worker.room import Room, find_device, measure_room, require_room

_log = logging.getLogger(__name__)
_FORESEEN = (ModelError, DeviceRefusedError, EngineError, OSError)
# Kernels, their work space, and one small batch: what a device needs beside the weights at the least.
_TO_WORK_BYTES = {"cuda": 2 << 30}
_TO_WORK_ELSEWHERE_BYTES = 256 << 20
_USABLE = 0.9  # of what is free: the rest is lost between blocks
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded model and what it can do here.

    Args:
        card: with what was measured.
        tile_s: seconds, as `rehearse` measures them; so is `decode_s`.
        decode_memory: bytes that decoding may hold.
    """

    model: LoadedModel
    card: ModelCard
    device: torch.device
    tile_s: float
    decode_s: float
    decode_memory: int


def make_ready(source: ModelSource, device_name: str, decode_memory_mb: int | None = None) -> Ready:
    """Load and rehearse, if the device exists and has room.

    Raises:
        Exception: whatever a model that does not work may raise; `explain` says it in words.
    """
    device = find_device(device_name)
    found = find_model(source)
    needed = weigh(found.address, device) + _TO_WORK_BYTES.get(device.type, _TO_WORK_ELSEWHERE_BYTES)
    require_room(measure_room(device), needed, f"model {source.model}")
    model = load_found(found, device)
    rehearsal = rehearse(model, device)
    room = measure_room(device)
    memory = decode_memory_mb << 20 if decode_memory_mb else choose_decode_memory(room)
    card = describe_needs(model.card, rehearsal, room.free, memory)
    return Ready(model, card, device, rehearsal.tile_s, rehearsal.decode_s, memory)


def explain(error: Exception) -> str:
    """Why a model cannot be served. It would be no better the next time, so nobody tries again."""
    if not isinstance(error, _FORESEEN):
        _log.error("the model does not work", exc_info=error)
    return f"{type(error).__name__}: {error}"


def choose_decode_memory(room: Room) -> int:
    """What decoding may hold of a device: 9 GiB of a GPU, 1 GiB of main memory, less where there is less.

    SDXL at 8192² then peaks below 16 GiB with its weights, and nothing goes through main memory; at
    4096² it holds no more than 5 GiB, as worker/engine/holding.py says.
    """
    most = 1 << 30 if room.device == "cpu" else 9 << 30
    return max(min(most, room.free // 4), 64 << 20)


def describe_needs(card: ModelCard, rehearsal: Rehearsal, free_bytes: int, decode_memory: int) -> ModelCard:
    """The card with what the device can do, and with what that takes of it.

    Decoding takes its work space, what it holds, and a quarter of that for the canvas it started from.
    """
    fitting = int(free_bytes * _USABLE // max(rehearsal.tile_bytes, 1))
    changes = {
        "default_num_modules": max(min(rehearsal.modules, fitting), 1),
        "tile_gib": round(rehearsal.tile_bytes / _GIB, 3),
        "decode_gib": round((rehearsal.decode_bytes + 1.25 * decode_memory) / _GIB, 3),
    }
    return card.model_copy(update=changes)
