"""Loads a model and makes a first picture, which measures its speed and memory."""

import logging
import tempfile
import time
from collections import deque
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path

import torch

from api_schemas.catalog import DecodeNeed, ModelCard
from api_schemas.generation import ResolvedRequest
from worker.adapters.errors import ModelError, ModelFolderError
from worker.adapters.footprint import weigh
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_found
from worker.adapters.settings import overriding_dtype
from worker.adapters.source import ModelSource, find_model
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Step
from worker.engine.ensemble import Ensemble
from worker.engine.errors import EngineError
from worker.engine.generate import PreparedModel, generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import Upscale
from worker.engine.vae.decode import predict_held
from worker.engine.warned import Warned
from worker.errors import DeviceRefusedError
from worker.planner import plan_generation
from worker.process.memory import (
    DeviceMemory,
    PeakMemory,
    find_device,
    measure_device_memory,
    require_device_memory,
)
from worker.state_files import EngineSetup

_log = logging.getLogger(__name__)
_EXPECTED = (ModelError, DeviceRefusedError, EngineError, OSError)
_STEPS = 2  # the first step of a process also takes the time to choose kernels
# Least memory beside the weights: kernels, their work space, and one small batch.
_WORK_BYTES = {"cuda": 2 << 30}
_WORK_ELSEWHERE_BYTES = 256 << 20
_USABLE = 0.9  # of what is free: the rest is lost to fragmentation
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What was measured.

    Args:
        tile_s: seconds per tile prediction.
        decode_s: seconds to decode one megapixel.
        tile_bytes: peak memory of one module while it predicts.
        decode_bytes: peak memory of decoding a picture of the model's native size.
        modules: that fit into memory; no more than the card asks for.
    """

    tile_s: float
    decode_s: float
    tile_bytes: int
    decode_bytes: int
    modules: int


def warm_up(model: LoadedModel, device: torch.device) -> WarmUp:
    """Make a picture of one tile, by every network that the model has; the last is the one that is measured.

    Raises:
        EngineError: the model does not make finite pictures.
    """
    card = model.card
    modules = card.default_num_modules
    prepared = model.prepare(Conditions("", guidance_scale=card.default_guidance_scale))
    times, peak, batch_bytes = [time.perf_counter()], PeakMemory(device), 0
    for progress in generate(_plan(model, modules), prepared):
        match progress:
            case Step():
                times.append(time.perf_counter())
                batch_bytes = max(batch_bytes, peak.measure())
                peak.restart()
            case Warned(code="batch_halved"):
                modules = max(modules // 2, 1)
            case _:
                pass
    times.append(time.perf_counter())
    decode_bytes = peak.measure()
    megapixels = card.native_size_px**2 / 1e6
    tile_s, decode_s = (times[-2] - times[-3]) / modules, (times[-1] - times[-2]) / megapixels
    return WarmUp(tile_s, decode_s, batch_bytes // modules, decode_bytes, modules)


def warm_up_every_shape(model: LoadedModel, card: ModelCard, decode_memory: int) -> None:
    """Predict batches of every size, and make a picture of twice the native side, as a cascade if the model has one.

    A GPU takes seconds to choose and record kernels for a new shape; the first job should not wait for it.
    """
    scale, side_px = card.default_guidance_scale, max(2 * card.native_size_px, card.min_side_px)
    prepared = model.prepare(Conditions("", guidance_scale=scale))
    request = ResolvedRequest(
        model=card.name,
        width_px=side_px,
        height_px=side_px,
        steps=_count_steps(card),
        guidance_scale=scale,
        seed=0,
        layout="cascade" if card.cascade.conditioned else "auto",
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_generation(request, card, decode_memory, Path(folder))
        for stage in plan.stages if card.cascade.conditioned else plan.stages[:1]:
            _predict_every_size(stage, plan.channels, prepared)
        deque(generate(plan, prepared), maxlen=0)


def _predict_every_size(stage: StagePlan, channels: int, prepared: PreparedModel) -> None:
    side, scheduler = stage.denoise.tile_size, prepared.make_scheduler(stage)
    latent = torch.zeros(channels, *stage.canvas.size, device=prepared.device)
    ensemble = Ensemble(
        prepared.make_replica(stage), stage.canvas, stage.modules, even=stage.even,
        enlarged=latent if isinstance(stage.start, Upscale) else None,
        masked=latent.new_zeros(1 + channels, *stage.canvas.size) if prepared.sees_masks else None,
    )  # fmt: skip
    ensemble.predict_every_size(latent, scheduler.timesteps[0], Rectangle(0, 0, side, side))


def _plan(model: LoadedModel, modules: int) -> GenerationPlan:
    side = model.card.native_size_px // model.card.vae_scale
    denoise = DenoisePlan(Plane(side, side), side, 0, 0, moving=False, seed=0)
    stage = StagePlan(denoise, _count_steps(model.card), modules=modules)
    stages = (stage, replace(stage, start=Upscale())) if model.card.cascade.conditioned else (stage,)
    return GenerationPlan(0, model.card.latent_channels, stages, DecodePlan(mode="bounded"))


def _count_steps(card: ModelCard) -> int:
    return max(_STEPS, card.min_steps)


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded model and what it can do here.

    Args:
        card: with what was measured.
        tile_s: seconds, as in `WarmUp`; so is `decode_s`.
        decode_memory: bytes that decoding may hold; `most_decode_memory` where it goes on with what another engine began.
        digest: of the model's files, as `FoundModel.digest` says, if it was asked for.
    """

    model: LoadedModel
    card: ModelCard
    device: torch.device
    tile_s: float
    decode_s: float
    decode_memory: int
    most_decode_memory: int
    digest: str = ""

    @property
    def setup(self) -> EngineSetup:
        return EngineSetup(self.card.dtype, self.card.default_num_modules, self.decode_memory)

    def go_on_as(self, before: EngineSetup) -> "Ready":
        """With the batches and the decode memory of the engine that wrote a checkpoint, as far as they fit here."""
        card, modules, memory = self.card, before.num_modules, before.decode_memory
        if modules is not None and modules <= card.default_num_modules:
            card = card.model_copy(update={"default_num_modules": modules})
        fits = memory is not None and memory <= self.most_decode_memory
        return replace(self, card=card, decode_memory=memory if fits else self.decode_memory)


def make_ready(
    source: ModelSource, device_name: str, decode_memory_mb: int | None = None, *, digested: bool = False
) -> Ready:
    """Load and warm up, if the device exists and has enough memory.

    Raises:
        Exception: a model that does not work may raise anything; `explain` makes a message of it.
    """
    device = find_device(device_name)
    found = find_model(source)
    with overriding_dtype(source.dtype):
        weights = weigh(found.address, device)
    needed = weights + _WORK_BYTES.get(device.type, _WORK_ELSEWHERE_BYTES)
    require_device_memory(measure_device_memory(device), needed, f"model {source.model}")
    model = load_found(found, device)
    measured = try_warm_up(model, device)
    available = measure_device_memory(device)
    memory, most = choose_decode_memory(available), available.free // 2
    if decode_memory_mb:
        memory = most = decode_memory_mb << 20
    needs = predict_decode(model, measured, DecodePlan(memory_bytes=memory, recompute=device.type == "cuda"))
    card = describe_needs(model.card, weights, measured, available.free, needs)
    if device.type == "cuda":
        warm_up_every_shape(model, card, memory)
    digest = found.digest() if digested else ""
    return Ready(model, card, device, measured.tile_s, measured.decode_s, memory, most, digest)


def try_warm_up(model: LoadedModel, device: torch.device) -> WarmUp:
    """
    Raises:
        ModelFolderError: the model's parts do not fit each other, or it cannot be compiled, which only a first picture shows.
    """
    try:
        return warm_up(model, device)
    except (*_EXPECTED, torch.OutOfMemoryError):
        raise
    except Exception as error:  # parts that were not made for each other may raise anything
        raise ModelFolderError(f"{model.card.name} is loaded, but {_find_fault(error)}") from error


def _find_fault(error: Exception) -> str:
    if type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        why = str(error).strip().partition("\n")[0]
        return (
            f"cannot be compiled: {why}; if the compiler's cache in {cache_dir()} may be damaged, delete it, "
            'or else leave out "compile" in chorale.json'
        )
    return (
        "makes no picture, so its parts' configurations do not fit each other: "
        f"{type(error).__name__}: {error}"
    )


def explain(error: Exception) -> str:
    """Why a model cannot be served, and will not be tried again."""
    if isinstance(error, _EXPECTED):
        return str(error)
    _log.error("the model does not work", exc_info=error)
    return f"{type(error).__name__}: {error}"


def choose_decode_memory(available: DeviceMemory) -> int:
    """Bytes that decoding may hold: 9 GiB of a GPU, 1 GiB of main memory, less where less is free.

    SDXL at 8192² then peaks below 16 GiB with its weights, and nothing goes through main memory; at
    4096² it holds no more than 5 GiB, as worker/engine/vae/memory.py says.
    """
    most = 1 << 30 if available.device == "cpu" else 9 << 30
    return max(min(most, available.free // 4), 64 << 20)


def predict_decode(model: LoadedModel, measured: WarmUp, plan: DecodePlan) -> list[DecodeNeed]:
    """Peak memory of decoding square pictures, each of twice as many pixels as the one before.

    It is the memory that the engine plans to hold, plus the measured peak of the smallest picture.
    """
    card = model.card
    count = int(2 * log2(card.max_side_px / card.native_size_px)) + 1
    sides = [round(card.native_size_px / card.vae_scale * 2 ** (index / 2)) for index in range(count)]
    held = [
        predict_held(torch.empty(card.latent_channels, side, side, device="meta"), model.decoder, plan)
        for side in sides
    ]
    return [
        DecodeNeed(side_px=side * card.vae_scale, gib=round((measured.decode_bytes + each) / _GIB, 3))
        for side, each in zip(sides, held, strict=True)
    ]


def describe_needs(
    card: ModelCard, weights: int, measured: WarmUp, free_bytes: int, decode_needs: list[DecodeNeed]
) -> ModelCard:
    """The card with the modules that fit on the device, and the memory that everything takes."""
    fitting = int(free_bytes * _USABLE // max(measured.tile_bytes, 1))
    changes = {
        "default_num_modules": max(min(measured.modules, fitting), 1),
        "tile_gib": round(measured.tile_bytes / _GIB, 3),
        "weights_gib": round(weights / _GIB, 3),
        "decode_needs": decode_needs,
    }
    return card.model_copy(update=changes)
