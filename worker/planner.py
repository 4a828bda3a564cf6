"""From a request to a plan. Pixels become latent pixels here, and pixels again in decode only."""

from pathlib import Path

from api_schemas.cascade import Stage
from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, LowBandPlan, StagePlan

_SHARED = 4  # by default a quarter of a tile is shared where borders do not move, and in the outer steps


def plan_generation(
    request: ResolvedRequest, card: ModelCard, decode_memory_bytes: int, spill_dir: Path
) -> GenerationPlan:
    """Make every choice that the request left open."""
    stages = card.lay_stages(request)
    return GenerationPlan(
        seed=request.seed,
        channels=card.latent_channels,
        stages=tuple(_plan_stage(request, card, stage) for stage in stages),
        decode=DecodePlan(
            mode=request.advanced.decode_mode, memory_bytes=decode_memory_bytes, spill_dir=str(spill_dir)
        ),
    )


def _plan_stage(request: ResolvedRequest, card: ModelCard, stage: Stage) -> StagePlan:
    return StagePlan(
        _plan_denoise(request, card, stage),
        stage.steps,
        stage.strength,
        modules=request.advanced.num_modules or card.default_num_modules,
        even=request.advanced.num_modules is None,
        low_band=LowBandPlan(card.cascade.low_band) if card.cascade.low_band else None,
    )


def _plan_denoise(request: ResolvedRequest, card: ModelCard, stage: Stage) -> DenoisePlan:
    scale, advanced, tile_px = card.vae_scale, request.advanced, stage.tile_size_px
    moving = advanced.tile_grid == "moving"
    outer_px = tile_px // _SHARED if advanced.overlap_px is None else advanced.overlap_px
    overlap_px = 0 if moving and advanced.overlap_px is None else outer_px
    return DenoisePlan(
        height=stage.height_px // scale,
        width=stage.width_px // scale,
        wrap=(request.seamless in ("y", "both"), request.seamless in ("x", "both")),
        tile_size=tile_px // scale,
        overlap=overlap_px // scale,
        outer_overlap=outer_px // scale,
        moving=moving,
        seed=request.seed,
        anchored=stage.strength < 1,
    )
