"""From a request to a plan: here pixels become latent pixels; decoding makes pixels again."""

from math import ceil
from pathlib import Path

from api_schemas.catalog import ModelCard
from api_schemas.generation import DEFAULT_FIDELITY, ResolvedRequest
from api_schemas.layout import Stage, StageAttention
from api_schemas.stages import lay_stages
from worker.engine.attention import AttentionPlan
from worker.engine.canvas import Plane
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import LowBandPlan, Noise, Picture, Upscale

# Words leave the source's tones to what is made; with a picture the source has that picture's from the start, and what is
# made may go its own way in the end. benchmarks/style.py measures both.
_LOW_BAND_OF_WORDS = LowBandPlan(start=1.0, end=0.4, cutoff=0.3, tint=0.85)
_LOW_BAND_OF_PICTURE = LowBandPlan()
# How far clean estimates of a conditioned stage are moved to the source at fidelity 1, and away from it at 0: its network keeps
# to the source's forms whatever noise is on it, and paints detail of one strength. benchmarks/quality/enhance.py measures both.
_MOST_FAITHFUL, _FREEST = 0.6, 0.25


def plan_generation(
    request: ResolvedRequest, card: ModelCard, decode_memory_bytes: int, spill_dir: Path
) -> GenerationPlan:
    """Decide all that the request leaves open."""
    stages = lay_stages(card, request)
    canvas = stages[-1]
    shown = request.height_px / canvas.height_px, request.width_px / canvas.width_px
    return GenerationPlan(
        seed=request.seed,
        channels=card.latent_channels,
        stages=tuple(
            _plan_stage(request, card, stage, shown, before)
            for before, stage in zip([None, *stages], stages, strict=False)
        ),
        decode=DecodePlan(
            mode=request.advanced.decode_mode, memory_bytes=decode_memory_bytes, spill_dir=str(spill_dir)
        ),
        bit_depth=request.bit_depth,
    )


def _plan_stage(
    request: ResolvedRequest,
    card: ModelCard,
    stage: Stage,
    shown: tuple[float, float],
    before: Stage | None,
) -> StagePlan:
    first = before is None
    return StagePlan(
        _plan_denoise(request, card, stage),
        stage.steps,
        _plan_start(card, stage, request, before) if stage.given or not first else Noise(),
        modules=request.advanced.num_modules or card.default_num_modules,
        even=request.advanced.num_modules is None,
        shown=shown,
        sync_strength=request.advanced.sync_strength or 0.0,
        synced_evenly=card.is_alike(request),
        keeps_detail=not first and (request.strength or 1.0) < 1,
    )


def _plan_start(
    card: ModelCard, stage: Stage, request: ResolvedRequest, before: Stage | None
) -> Picture | Upscale:
    """From a picture, of the stage before or the request's source, or from noise with that picture to be seen."""
    if stage.conditioned:
        return Upscale(
            card.choose_augmentation(request),
            skipped=stage.skipped,
            low_band=_keep_to_source(request),
            held=1.0 if request.upscale is None else min(request.chosen_fidelity / DEFAULT_FIDELITY, 1.0),
            reduced=_reduce(card, stage, before, request.upscale),
        )
    style = request.active_style
    if style is not None:
        return Picture(stage.skipped, _LOW_BAND_OF_PICTURE if style.has_picture else _LOW_BAND_OF_WORDS)
    guided = before is not None or request.upscale is not None
    share = card.cascade.low_band if guided else 0.0
    return Picture(stage.skipped, LowBandPlan(share) if share else None)


def _reduce(
    card: ModelCard, stage: Stage, before: Stage | None, upscale: int | None
) -> tuple[int, int] | None:
    """(height, width) in latent pixels: what a conditioned stage has made is shown to the next one so small that that enlarges
    it as many times as its network can. The detail that it paints is that of its factor: what is doubled stays soft.

    Where a source is enlarged, not to less than twice its size: reduced copies keep to it by 32 dB then, in place of 34.
    """
    if before is None or not before.conditioned or (upscale and upscale < 2 * card.cascade.enlarges):
        return None
    times = card.cascade.enlarges * card.vae_scale
    height, width = ceil(stage.height_px / times), ceil(stage.width_px / times)
    return (height, width) if height * card.vae_scale < before.height_px else None


def _keep_to_source(request: ResolvedRequest) -> LowBandPlan | None:
    """Towards the source above the default fidelity, and away from it below."""
    asked = (request.chosen_fidelity - DEFAULT_FIDELITY) / DEFAULT_FIDELITY
    if request.upscale is None or asked == 0:
        return None
    weight = asked * (_MOST_FAITHFUL if asked > 0 else _FREEST)
    return LowBandPlan(weight, weight, cutoff=None)


def _plan_denoise(request: ResolvedRequest, card: ModelCard, stage: Stage) -> DenoisePlan:
    scale, tiling = card.vae_scale, stage.tiling
    return DenoisePlan(
        canvas=Plane(stage.height_px // scale, stage.width_px // scale, tiling.wrap),
        tile_size=tiling.tile_size_px // scale,
        overlap=tiling.overlap_px // scale,
        outer_overlap=tiling.outer_overlap_px // scale,
        moving=tiling.moving,
        seed=request.seed,
        outer_shares=tiling.outer_shares,
        attention=stage.attention and _plan_attention(card, stage.attention),
        resampled=stage.resampled,
        guided=(stage.guided.start / max(stage.steps, 1), stage.guided.stop / max(stage.steps, 1)),
    )


def _plan_attention(card: ModelCard, attention: StageAttention) -> AttentionPlan:
    scale = card.vae_scale
    return AttentionPlan(
        conductor=(attention.height_px // scale, attention.width_px // scale),
        strength=attention.strength,
        share=attention.share,
        neighbours=attention.neighbours,
        unit=card.alignment_px // scale,
        styled=attention.styled,
    )
