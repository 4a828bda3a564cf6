"""One small picture before the first job: the model works, and how fast it is."""

import time

from worker.adapters.model import Conditions, LoadedModel
from worker.engine.denoise import Step
from worker.engine.generate import generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan

_STEPS = 2  # the first step of a process also pays for choosing kernels


def rehearse(model: LoadedModel) -> tuple[float, float]:
    """Sing one tile.

    Returns:
        seconds per tile prediction, seconds to decode a megapixel.

    Raises:
        EngineError: the model does not make finite pictures.
    """
    card = model.card
    modules = card.default_num_modules
    singer = model.prepare(Conditions("", guidance_scale=card.default_guidance_scale))
    times = [time.perf_counter()]
    for progress in generate(_plan(model), singer):
        if isinstance(progress, Step):
            times.append(time.perf_counter())
    times.append(time.perf_counter())
    megapixels = card.native_size_px**2 / 1e6
    return (times[-2] - times[-3]) / modules, (times[-1] - times[-2]) / megapixels


def _plan(model: LoadedModel) -> GenerationPlan:
    side = model.card.native_size_px // model.card.vae_scale
    denoise = DenoisePlan(side, side, (False, False), side, 0, 0, moving=False, seed=0)
    stage = StagePlan(denoise, _STEPS, modules=model.card.default_num_modules)
    return GenerationPlan(0, model.card.latent_channels, (stage,), DecodePlan(mode="bounded"))
