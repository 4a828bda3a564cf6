"""The straight line: plan -> noise -> denoise -> decode -> stitch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.decode import decode
from worker.engine.decoder import Decoder
from worker.engine.denoise import Checkpoint, Step, TilePredicted, denoise
from worker.engine.ensemble import Ensemble
from worker.engine.noise import initial_noise
from worker.engine.plan import GenerationPlan
from worker.engine.schedule import Scheduler, initial_scale, restore_state
from worker.engine.stitch import Band, stitch

Progress = TilePredicted | Step | Band


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A model with its prompt: who predicts, who advances the canvas, who paints."""

    ensemble: Ensemble
    scheduler: Scheduler
    decoder: Decoder
    device: torch.device


def generate(
    plan: GenerationPlan, pipeline: Pipeline, resume: Checkpoint | None = None
) -> Iterator[Progress]:
    """Sing one picture; with `resume`, from there on and to the same bytes.

    The caller drives, and cancels by closing the iterator.

    Raises:
        NonFiniteLatentError: a step broke.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    latent = _begin(plan, pipeline) if resume is None else _resume(resume, pipeline, generator)
    first_step = resume.step if resume else 0
    yield from denoise(latent, plan.denoise, pipeline.ensemble, pipeline.scheduler, generator, first_step)
    tiles = decode(latent, pipeline.decoder, plan.denoise.wrap, plan.decode)
    yield from stitch(tiles, plan.denoise.width * pipeline.decoder.scale)


def _begin(plan: GenerationPlan, pipeline: Pipeline) -> Tensor:
    noise = initial_noise(plan.seed, plan.channels, plan.denoise.height, plan.denoise.width)
    return noise.to(pipeline.device) * initial_scale(pipeline.scheduler)


def _resume(checkpoint: Checkpoint, pipeline: Pipeline, generator: torch.Generator) -> Tensor:
    generator.set_state(checkpoint.tensors["generator"])
    kept = {name.removeprefix("scheduler."): tensor for name, tensor in checkpoint.tensors.items()}
    latent = kept.pop("latent").to(pipeline.device)
    del kept["generator"]
    restore_state(pipeline.scheduler, kept, checkpoint.scalars, pipeline.device)
    return latent
