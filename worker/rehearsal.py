"""One small picture before the first job: the model works, how fast it is, and what memory it takes."""

import time
from collections import deque
from dataclasses import dataclass

import torch

from worker.adapters.model import Conditions, LoadedModel
from worker.engine.denoise import Step
from worker.engine.generate import generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.warned import Warned
from worker.peak import Peak

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
    if modules > 1:  # after the largest batch, for which blocks are compiled: kernels for small ones, too
        deque(generate(_plan(model, 1), singer), maxlen=0)
    megapixels = card.native_size_px**2 / 1e6
    tile_s, decode_s = (times[-2] - times[-3]) / modules, (times[-1] - times[-2]) / megapixels
    return Rehearsal(tile_s, decode_s, batch_bytes // modules, decode_bytes, modules)


def _plan(model: LoadedModel, modules: int) -> GenerationPlan:
    side = model.card.native_size_px // model.card.vae_scale
    denoise = DenoisePlan(side, side, (False, False), side, 0, 0, moving=False, seed=0)
    stage = StagePlan(denoise, _STEPS, modules=modules)
    return GenerationPlan(0, model.card.latent_channels, (stage,), DecodePlan(mode="bounded"))
