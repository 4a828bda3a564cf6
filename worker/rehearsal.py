"""Small pictures before the first job: the model works, how fast it is, what memory it takes, and no shape is new."""

import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest
from worker.adapters.model import Conditions, LoadedModel
from worker.engine.denoise import Step
from worker.engine.generate import generate
from worker.engine.grid import Tile
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.warned import Warned
from worker.peak import Peak
from worker.planner import plan_generation

_STEPS = 2  # the first step of a process also pays for choosing kernels


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was measured.

    Args:
        tile_s: seconds per tile prediction; `decode_s` to decode a megapixel.
        tile_bytes: memory that one module takes while it sings.
        decode_bytes: memory that decoding a picture of the model's native size takes.
        modules: that had room; no more than the card asks for.
    """

    tile_s: float
    decode_s: float
    tile_bytes: int
    decode_bytes: int
    modules: int


def rehearse(model: LoadedModel, device: torch.device) -> Rehearsal:
    """Sing one tile.

    Raises:
        EngineError: the model does not make finite pictures.
    """
    card = model.card
    modules = card.default_num_modules
    singer = model.prepare(Conditions("", guidance_scale=card.default_guidance_scale))
    times, peak, batch_bytes = [time.perf_counter()], Peak(device), 0
    for progress in generate(_plan(model, modules), singer):
        match progress:
            case Step():
                times.append(time.perf_counter())
                batch_bytes = max(batch_bytes, peak.rise())
                peak.restart()
            case Warned(code="batch_halved"):
                modules = max(modules // 2, 1)
            case _:
                pass
    times.append(time.perf_counter())
    decode_bytes = peak.rise()
    megapixels = card.native_size_px**2 / 1e6
    tile_s, decode_s = (times[-2] - times[-3]) / modules, (times[-1] - times[-2]) / megapixels
    return Rehearsal(tile_s, decode_s, batch_bytes // modules, decode_bytes, modules)


def meet_every_shape(model: LoadedModel, card: ModelCard, decode_memory: int) -> None:
    """Batches of every size, and a picture of twice the native side, on its way up where the model goes one.

    A GPU takes seconds to choose and record kernels for what it has not seen: now, not in the first job.
    """
    scale, side_px = card.default_guidance_scale, max(2 * card.native_size_px, card.min_side_px)
    singer = model.prepare(Conditions("", guidance_scale=scale))
    request = ResolvedRequest(
        model=card.name,
        width_px=side_px,
        height_px=side_px,
        steps=_count_steps(card),
        guidance_scale=scale,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_generation(request, card, decode_memory, Path(folder))
        stage = plan.stages[0]
        canvas, (ensemble, scheduler) = stage.denoise, singer.begin(stage)
        latent = torch.zeros(plan.channels, canvas.height, canvas.width, device=singer.device)
        tile = Tile(0, 0, canvas.tile_size, canvas.tile_size)
        ensemble.sing_every_size(latent, scheduler.timesteps[0], tile)
        deque(generate(plan, singer), maxlen=0)


def _plan(model: LoadedModel, modules: int) -> GenerationPlan:
    side = model.card.native_size_px // model.card.vae_scale
    denoise = DenoisePlan(side, side, (False, False), side, 0, 0, moving=False, seed=0)
    stage = StagePlan(denoise, _count_steps(model.card), modules=modules)
    return GenerationPlan(0, model.card.latent_channels, (stage,), DecodePlan(mode="bounded"))


def _count_steps(card: ModelCard) -> int:
    return max(_STEPS, card.min_steps)
