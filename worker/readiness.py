"""From a model's source to a model that has sung once on its device."""

import logging
from dataclasses import dataclass
from math import log2

import torch

from api_schemas.catalog import DecodeNeed, ModelCard
from worker.adapters.errors import ModelError, ModelFolderError
from worker.adapters.footprint import weigh
from worker.adapters.model import LoadedModel
from worker.adapters.registry import load_found
from worker.adapters.source import ModelSource, find_model
from worker.engine.decode import predict_held
from worker.engine.errors import EngineError
from worker.engine.plan import DecodePlan
from worker.errors import DeviceRefusedError
from worker.rehearsal import Rehearsal, meet_every_shape, rehearse
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
    weights = weigh(found.address, device)
    needed = weights + _TO_WORK_BYTES.get(device.type, _TO_WORK_ELSEWHERE_BYTES)
    require_room(measure_room(device), needed, f"model {source.model}")
    model = load_found(found, device)
    rehearsal = _try_out(model, device)
    room = measure_room(device)
    memory = decode_memory_mb << 20 if decode_memory_mb else choose_decode_memory(room)
    needs = predict_decode(model, rehearsal, DecodePlan(memory_bytes=memory, recompute=device.type == "cuda"))
    card = describe_needs(model.card, weights, rehearsal, room.free, needs)
    if device.type == "cuda":
        meet_every_shape(model, card, memory)
    return Ready(model, card, device, rehearsal.tile_s, rehearsal.decode_s, memory)


def _try_out(model: LoadedModel, device: torch.device) -> Rehearsal:
    """
    Raises:
        ModelFolderError: parts do not fit each other, which only a first picture shows.
    """
    try:
        return rehearse(model, device)
    except (*_FORESEEN, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever parts may raise that were not made for each other
        raise ModelFolderError(
            f"{model.card.name} is loaded, but makes no picture, so its parts' configurations do not fit each "
            f"other: {type(error).__name__}: {error}"
        ) from error


def explain(error: Exception) -> str:
    """Why a model cannot be served. It would be no better the next time, so nobody tries again."""
    if isinstance(error, _FORESEEN):
        return str(error)
    _log.error("the model does not work", exc_info=error)
    return f"{type(error).__name__}: {error}"


def choose_decode_memory(room: Room) -> int:
    """What decoding may hold of a device: 9 GiB of a GPU, 1 GiB of main memory, less where there is less.

    SDXL at 8192² then peaks below 16 GiB with its weights, and nothing goes through main memory; at
    4096² it holds no more than 5 GiB, as worker/engine/holding.py says.
    """
    most = 1 << 30 if room.device == "cpu" else 9 << 30
    return max(min(most, room.free // 4), 64 << 20)


def predict_decode(model: LoadedModel, rehearsal: Rehearsal, plan: DecodePlan) -> list[DecodeNeed]:
    """What decoding takes of square pictures, each of twice as many pixels as the one before.

    It is what the engine will hold, and as its work space what it took to decode the smallest.
    """
    card = model.card
    count = int(2 * log2(card.max_side_px / card.native_size_px)) + 1
    sides = [round(card.native_size_px / card.vae_scale * 2 ** (index / 2)) for index in range(count)]
    held = [
        predict_held(torch.empty(card.latent_channels, side, side, device="meta"), model.decoder, plan)
        for side in sides
    ]
    return [
        DecodeNeed(side_px=side * card.vae_scale, gib=round((rehearsal.decode_bytes + each) / _GIB, 3))
        for side, each in zip(sides, held, strict=True)
    ]


def describe_needs(
    card: ModelCard, weights: int, rehearsal: Rehearsal, free_bytes: int, decode_needs: list[DecodeNeed]
) -> ModelCard:
    """The card with what the device can do, and with what that takes of it."""
    fitting = int(free_bytes * _USABLE // max(rehearsal.tile_bytes, 1))
    changes = {
        "default_num_modules": max(min(rehearsal.modules, fitting), 1),
        "tile_gib": round(rehearsal.tile_bytes / _GIB, 3),
        "weights_gib": round(weights / _GIB, 3),
        "decode_needs": decode_needs,
    }
    return card.model_copy(update=changes)
