"""One picture: noise -> denoise -> decode -> stitch, over one stage or a cascade of them, each upscaled from the last."""

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.back_projection import hold_to_smaller
from worker.engine.beginning import Begun, begin_conditioned, begin_from_picture, blend
from worker.engine.denoise import Checkpoint, Span, Step, TilePredicted, denoise
from worker.engine.ensemble import Ensemble, Replica
from worker.engine.inpaint import Inpainting
from worker.engine.noise import initial_noise
from worker.engine.plan import GenerationPlan, StagePlan
from worker.engine.ranks import Group, SingleRank
from worker.engine.regions import Regions
from worker.engine.scheduler import Scheduler
from worker.engine.show_mask import show_mask
from worker.engine.start import Noise, Upscale
from worker.engine.stitch import Band, decode_part, stitch
from worker.engine.style import Style, tint
from worker.engine.sync import Sync
from worker.engine.upscale import Autoencoder, augment, read_given, upscale_latent
from worker.engine.vae.executor import Heartbeat, MomentsPooled
from worker.engine.vae.operations import Decoder
from worker.engine.warned import Warned

_STYLE = -1000  # names the style picture's noise; stages and what they see of each other have numbers near 0


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


@dataclass(frozen=True, slots=True)
class FinalState:
    """What the picture is decoded from: with it, a part can be made again and all else keep its bytes.

    Args:
        latent: clean, (C, H, W), float32.
        moments: of every group normalisation of the decoder, as `decode` takes them.
    """

    latent: Tensor
    moments: tuple[Tensor, ...]


Progress = StageBegan | Heartbeat | TilePredicted | Step | FinalState | Band | Warned


class PreparedModel(Autoencoder, Protocol):
    """A model that knows its prompt: what predicts, what advances the canvas, what decodes it."""

    def make_replica(self, stage: StagePlan, /) -> Replica:
        """What predicts the tiles of a stage."""
        ...

    def make_scheduler(self, stage: StagePlan, /) -> Scheduler:
        """A fresh scheduler, set to `stage.steps`."""
        ...

    @property
    def sees_masks(self) -> bool:
        """Whether it was trained to see what is made, and the rest of the picture, on channels of their own."""
        ...


@dataclass(frozen=True, slots=True)
class _ScheduledStage:
    """A stage whose number of steps is known."""

    plan: StagePlan
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
    group = group or SingleRank()
    generator = torch.Generator().manual_seed(plan.seed)
    latent: Tensor | None = None
    at_most: int | None = None
    for stage in _schedule(plan, prepared):
        before, steps = stage.span.before, stage.began.steps
        if resume and resume.step > before + steps:
            continue
        yield stage.began
        style = yield from _read_style(plan, stage.plan, prepared, group)
        if resume and resume.step > before:
            begun = yield from _resume(resume, plan, stage, generator, prepared, group)
        else:
            begun = yield from _start(plan, stage, latent, style, prepared, group)
        masked = None
        if prepared.sees_masks and not isinstance(stage.plan.start, Upscale):
            moments = plan.paste and plan.paste.moments
            masked = yield from show_mask(begun.inpainting, stage.plan, prepared, plan.decode, group, moments)
        ensemble = Ensemble(
            prepared.make_replica(stage.plan), stage.plan.canvas, stage.plan.modules, group,
            even=stage.plan.even, at_most=at_most, enlarged=begun.enlarged, masked=masked,
            regions=_place_regions(stage, prepared.device),
        )  # fmt: skip
        latent = yield from denoise(
            begun.latent, stage.plan.denoise, ensemble, stage.scheduler, generator,
            max(resume.step - before, 0) if resume else 0, stage.span, begun.low_band, _make_sync(stage.plan, begun.inpainting),
            begun.inpainting, style,
        )  # fmt: skip
        latent = yield from hold_to_smaller(
            latent, ensemble.enlarged, plan, stage.began.level, prepared, group
        )
        at_most = ensemble.at_most
    assert latent is not None
    yield from _decode_to_rows(latent, plan, prepared.decoder, group)


def _decode_to_rows(
    latent: Tensor, plan: GenerationPlan, decoder: Decoder, group: Group
) -> Iterator[FinalState | Heartbeat | Band | Warned]:
    widen = plan.bit_depth > 8 and decoder.dtype is not torch.float32
    with decoder.widened() if widen else nullcontext():
        # The plan for memory goes by the type that is computed in.
        decoder = replace(decoder, dtype=torch.float32) if widen else decoder
        shown = plan.stages[-1].shown_px(decoder.scale)
        moments, part = (plan.paste.moments, plan.paste.part) if plan.paste else (None, None)
        tiles = decode_part(latent, decoder, plan.canvas, plan.decode, group, moments=moments, part=part)
        for event in stitch(tiles, plan.canvas.width * decoder.scale, shown, plan.bit_depth):
            match event:
                case MomentsPooled(moments):
                    yield FinalState(latent, moments)
                case Band(top, rows) if plan.paste:
                    yield Band(top, plan.paste.overlay(top, rows))
                case _:
                    yield event


def _schedule(plan: GenerationPlan, prepared: PreparedModel) -> list[_ScheduledStage]:
    """All stages at once, since only their schedulers know how many steps they take."""
    schedulers = [prepared.make_scheduler(stage.whole) for stage in plan.stages]
    for stage, scheduler in zip(plan.stages, schedulers, strict=True):
        scheduler.skip(stage.whole.steps - stage.steps)
    counts = [len(scheduler.timesteps) for scheduler in schedulers]
    befores, total, levels = [0, *accumulate(counts)], sum(counts), len(counts)
    return [
        _ScheduledStage(
            stage, scheduler, Span(before, total),
            StageBegan(level, levels, stage.canvas.height, stage.canvas.width, before, count, total),
        )
        for level, (stage, scheduler, before, count) in enumerate(
            zip(plan.stages, schedulers, befores, counts, strict=False), start=1
        )
    ]  # fmt: skip


def _read_style(
    plan: GenerationPlan, stage: StagePlan, prepared: PreparedModel, group: Group
) -> Generator[Heartbeat, None, Style | None]:
    """A resumed job encodes it again: the encoder gives the same bytes."""
    attention = stage.denoise.attention
    if stage.style is None or attention is None:
        return None
    latent = yield from read_given(stage.style, prepared, plan.decode, group)
    noise = initial_noise(plan.seed, *latent.shape, stage=_STYLE)
    return Style(latent.contiguous(), noise.to(prepared.device), attention.strength)


def _start(
    plan: GenerationPlan,
    stage: _ScheduledStage,
    before: Tensor | None,
    style: Style | None,
    prepared: PreparedModel,
    group: Group,
) -> Generator[Warned | Heartbeat, None, Begun]:
    """Pure noise, or a picture under as much noise as the first step expects."""
    canvas, scheduler, start = stage.plan.canvas, stage.scheduler, stage.plan.start
    noise = _draw_noise(plan, stage).to(prepared.device)
    pure = noise * scheduler.initial_scale
    if isinstance(start, Noise):
        return Begun(pure)
    if start.given is not None:
        before = yield from read_given(start.given, prepared, plan.decode, group)
    assert before is not None
    reduced = start.reduced if isinstance(start, Upscale) else None
    encoded = yield from upscale_latent(before, canvas, prepared, plan.decode, group, reduced)
    # An encoder may leave its channels last; a resumed canvas never has them so.
    reference = encoded.contiguous()
    kept = yield from _read_kept(plan, stage.plan, prepared, group)
    if isinstance(start, Upscale):
        enlarged = augment(reference, start.augmentation, plan.seed, stage.began.level)
        latent = pure if kept is None or not start.skipped else scheduler.add_noise(kept, noise)
        return begin_conditioned(reference, enlarged, kept, latent, noise, stage.plan)
    if style is not None:  # the low band would keep the source's tones
        reference = tint(reference, style.latent, style.strength)
    # At a schedule's first step a given picture must not shine through the noise.
    whole = start.given is not None and not start.skipped
    latent = pure if whole else scheduler.add_noise(blend(kept, reference, stage.plan), noise)
    return begin_from_picture(reference, kept, latent, noise, stage.plan, trained=prepared.sees_masks)


def _read_kept(
    plan: GenerationPlan, stage: StagePlan, prepared: PreparedModel, group: Group
) -> Generator[Heartbeat, None, Tensor | None]:
    """A resumed job encodes it again: the encoder gives the same bytes."""
    if stage.kept is None:
        return None
    latent = yield from read_given(stage.kept, prepared, plan.decode, group)
    return latent.contiguous()


def _make_sync(stage: StagePlan, inpainting: Inpainting | None) -> Sync | None:
    """None where there is nothing to agree with: one tile covers the canvas and nothing of it stays, or what stays differs."""
    alone = stage.denoise.tile_shape == stage.canvas.size and inpainting is None
    if alone or not stage.sync_strength:
        return None
    regions = stage.denoise.regions
    sync = Sync(
        stage.sync_strength, stage.canvas,
        evenly=stage.synced_evenly, regions=regions and regions.weights, inpainting=inpainting,
    )  # fmt: skip
    return sync if sync.has_example() else None


def _draw_noise(plan: GenerationPlan, stage: _ScheduledStage) -> Tensor:
    def draw(seed: int) -> Tensor:
        return initial_noise(seed, plan.channels, *stage.plan.canvas.size, stage=stage.began.level - 1)

    def draw_varied(seed: int) -> Tensor:
        noise = draw(seed)
        for variation in plan.variations:
            noise = variation.mix(noise, draw(variation.seed))
        return noise

    regions, noise = stage.plan.denoise.regions, draw_varied(plan.seed)
    return noise if regions is None else regions.mix_noise(noise, draw_varied)


def _place_regions(stage: _ScheduledStage, device: torch.device) -> Regions | None:
    regions = stage.plan.denoise.regions
    return None if regions is None else regions.on(device)


def _resume(
    checkpoint: Checkpoint,
    plan: GenerationPlan,
    stage: _ScheduledStage,
    generator: torch.Generator,
    prepared: PreparedModel,
    group: Group,
) -> Generator[Heartbeat, None, Begun]:
    device = prepared.device
    generator.set_state(checkpoint.tensors["generator"])
    found = {name.removeprefix("scheduler."): tensor for name, tensor in checkpoint.tensors.items()}
    latent, reference = found.pop("latent").to(device), found.pop("reference", None)
    del found["generator"]
    stage.scheduler.restore(found, checkpoint.scalars)
    if reference is None or isinstance(stage.plan.start, Noise):
        return Begun(latent)
    reference, noise = reference.to(device), _draw_noise(plan, stage).to(device)
    kept = yield from _read_kept(plan, stage.plan, prepared, group)
    start = stage.plan.start
    if isinstance(start, Upscale):
        enlarged = reference
        if start.low_band is not None:  # else what the model sees was kept
            enlarged = augment(reference, start.augmentation, plan.seed, stage.began.level)
        return begin_conditioned(reference, enlarged, kept, latent, noise, stage.plan)
    return begin_from_picture(reference, kept, latent, noise, stage.plan, trained=prepared.sees_masks)
