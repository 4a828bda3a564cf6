"""The straight line: plan -> noise -> denoise -> decode -> stitch."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.decode import decode
from worker.engine.decoder import Decoder
from worker.engine.denoise import Checkpoint, Step, TilePredicted, denoise
from worker.engine.ensemble import Ensemble
from worker.engine.noise import initial_noise
from worker.engine.plan import GenerationPlan, StagePlan
from worker.engine.schedule import Scheduler, initial_scale, restore_state
from worker.engine.stitch import Band, stitch
from worker.engine.sync import Alone, Group
from worker.engine.warned import Warned

Progress = TilePredicted | Step | Band | Warned


class Singer(Protocol):
    """A model that knows its prompt: who predicts, who advances the canvas, who paints."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def device(self) -> torch.device: ...

    def begin(self, stage: StagePlan) -> tuple[Ensemble, Scheduler]:
        """Get ready for one stage: all modules, and a fresh scheduler with its timesteps set."""
        ...


def generate(
    plan: GenerationPlan, singer: Singer, resume: Checkpoint | None = None, group: Group | None = None
) -> Iterator[Progress]:
    """Sing one picture; with `resume`, from there on and to the same bytes.

    The caller drives, and cancels by closing the iterator. All ranks of a group walk this line alike.

    Raises:
        NonFiniteLatentError: a step broke.
    """
    (stage,) = plan.stages
    ensemble, scheduler = singer.begin(stage)
    ensemble.join(group or Alone())
    generator = torch.Generator().manual_seed(plan.seed)
    latent = (
        _begin(plan, scheduler) if resume is None else _resume(resume, scheduler, generator, singer.device)
    )
    first_step = resume.step if resume else 0
    latent = latent.to(singer.device)
    yield from denoise(latent, stage.denoise, ensemble, scheduler, generator, first_step)
    tiles = decode(latent, singer.decoder, plan.canvas.wrap, plan.decode)
    yield from stitch(tiles, plan.canvas.width * singer.decoder.scale)


def _begin(plan: GenerationPlan, scheduler: Scheduler) -> Tensor:
    noise = initial_noise(plan.seed, plan.channels, plan.canvas.height, plan.canvas.width)
    return noise * initial_scale(scheduler)


def _resume(
    checkpoint: Checkpoint, scheduler: Scheduler, generator: torch.Generator, device: torch.device
) -> Tensor:
    generator.set_state(checkpoint.tensors["generator"])
    kept = {name.removeprefix("scheduler."): tensor for name, tensor in checkpoint.tensors.items()}
    latent = kept.pop("latent")
    del kept["generator"]
    restore_state(scheduler, kept, checkpoint.scalars, device)
    return latent
