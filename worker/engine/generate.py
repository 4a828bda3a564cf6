"""The straight line: plan -> noise -> denoise -> decode -> stitch, over one stage or a cascade of them."""

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.denoise import Checkpoint, Span, Step, TilePredicted, denoise
from worker.engine.ensemble import Ensemble
from worker.engine.guidance import LowBand
from worker.engine.noise import initial_noise
from worker.engine.plan import GenerationPlan, StagePlan
from worker.engine.ranks import Alone, Group
from worker.engine.scheduler import Scheduler
from worker.engine.stitch import Stitching, stitch
from worker.engine.upscale import Autoencoder, ascend
from worker.engine.vae.decode import decode
from worker.engine.vae.executor import SignOfLife
from worker.engine.vae.operations import Decoder
from worker.engine.warned import Warned


@dataclass(frozen=True, slots=True)
class StageBegan:
    """A canvas of a new size is to be denoised.

    Args:
        level: 1 for the smallest, up to `levels`.
        height: of the canvas, latent pixels; so is `width`. The picture may be a little smaller.
        before: steps of the stages before.
        steps: of this stage, as its scheduler takes them.
        total: steps of all stages.
    """

    level: int
    levels: int
    height: int
    width: int
    before: int
    steps: int
    total: int


Progress = StageBegan | TilePredicted | Step | Stitching


class PreparedModel(Autoencoder, Protocol):
    """A model that knows its prompt: who predicts, who advances the canvas, who paints."""

    def begin(self, stage: StagePlan) -> tuple[Ensemble, Scheduler]:
        """Get ready for one stage: all modules, and a fresh scheduler set to `stage.steps`."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """A stage that is ready to be denoised."""

    stage: StagePlan
    ensemble: Ensemble
    scheduler: Scheduler
    span: Span
    began: StageBegan


def generate(
    plan: GenerationPlan,
    prepared: PreparedModel,
    resume: Checkpoint | None = None,
    group: Group | None = None,
) -> Iterator[Progress]:
    """Make one picture; with `resume`, from there on and to the same bytes.

    The caller drives, and cancels by closing the iterator. All ranks of a group run this alike.

    Raises:
        NonFiniteLatentError: a step broke.
        NonFiniteImageError: a decode tile broke, in float32 too.
    """
    group = group or Alone()
    generator = torch.Generator().manual_seed(plan.seed)
    latent: Tensor | None = None
    for part in _get_ready(plan, prepared, group):
        if resume and resume.step > part.began.before + part.began.steps:
            continue
        yield part.began
        if resume and resume.step > part.began.before:
            latent, low_band = _resume(resume, part, generator, prepared.device)
            first_step = resume.step - part.began.before
        else:
            latent, low_band = yield from _begin(plan, part, latent, prepared, group)
            first_step = 0
        latent = yield from denoise(
            latent, part.stage.denoise, part.ensemble, part.scheduler, generator, first_step, part.span, low_band
        )  # fmt: skip
    assert latent is not None
    yield from _decode_to_rows(latent, plan, prepared.decoder, group)


def _decode_to_rows(
    latent: Tensor, plan: GenerationPlan, decoder: Decoder, group: Group
) -> Iterator[Stitching]:
    widen = plan.bit_depth > 8 and decoder.dtype is not torch.float32
    with decoder.widened() if widen else nullcontext():
        # The plan for memory goes by the type that is computed in.
        decoder = replace(decoder, dtype=torch.float32) if widen else decoder
        tiles = decode(latent, decoder, plan.canvas.wrap, plan.decode, group)
        shown = plan.stages[-1].shown_px(decoder.scale)
        yield from stitch(tiles, plan.canvas.width * decoder.scale, shown, plan.bit_depth)


def _get_ready(plan: GenerationPlan, prepared: PreparedModel, group: Group) -> list[_Part]:
    """All stages at once, since only their schedulers know how many steps they take."""
    begun = [(stage, *prepared.begin(stage.whole)) for stage in plan.stages]
    for stage, _, scheduler in begun:
        scheduler.skip(stage.whole.steps - stage.steps)
    counts = [len(scheduler.timesteps) for _, _, scheduler in begun]
    befores, total = [0, *accumulate(counts)], sum(counts)
    parts: list[_Part] = []
    for index, (stage, ensemble, scheduler) in enumerate(begun):
        ensemble.join(group)
        span = Span(befores[index], total)
        canvas = stage.denoise
        began = StageBegan(
            index + 1, len(begun), canvas.height, canvas.width, befores[index], counts[index], total
        )
        parts.append(_Part(stage, ensemble, scheduler, span, began))
    return parts


def _begin(
    plan: GenerationPlan, part: _Part, before: Tensor | None, prepared: PreparedModel, group: Group
) -> Generator[Warned | SignOfLife, None, tuple[Tensor, LowBand | None]]:
    """The noisy canvas: pure noise, or the enlarged picture of the stage before under as much as it takes."""
    canvas, level = part.stage.denoise, part.began.level
    noise = initial_noise(plan.seed, plan.channels, canvas.height, canvas.width, stage=level - 1)
    if before is None:
        return (noise * part.scheduler.initial_scale).to(prepared.device), None
    encoded = yield from ascend(before, canvas, prepared, plan.decode, group)
    reference = (
        encoded.contiguous()
    )  # an encoder may leave its channels last, a resumed canvas never has them so
    latent = part.scheduler.add_noise(reference, noise.to(prepared.device))
    return latent, _make_low_band(part, reference)


def _make_low_band(part: _Part, reference: Tensor) -> LowBand | None:
    low_band = part.stage.low_band
    return None if low_band is None else LowBand(low_band, reference, part.stage.denoise.wrap)


def _resume(
    checkpoint: Checkpoint, part: _Part, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, LowBand | None]:
    generator.set_state(checkpoint.tensors["generator"])
    kept = {name.removeprefix("scheduler."): tensor for name, tensor in checkpoint.tensors.items()}
    latent, reference = kept.pop("latent"), kept.pop("reference", None)
    del kept["generator"]
    part.scheduler.restore(kept, checkpoint.scalars)
    low_band = None if reference is None else _make_low_band(part, reference.to(device))
    return latent.to(device), low_band
