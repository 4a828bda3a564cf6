"""From a request to a plan. Pixels become latent pixels here, and pixels again in decode only."""

from pathlib import Path

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan

_SHARED = 4  # by default a quarter of a tile is shared where borders do not move, and in the outer steps


def plan_generation(
    request: ResolvedRequest, card: ModelCard, decode_memory_bytes: int, spill_dir: Path
) -> GenerationPlan:
    """Make every choice that the request left open."""
    return GenerationPlan(
        seed=request.seed,
        channels=card.latent_channels,
        stages=(_plan_stage(request, card),),
        decode=DecodePlan(
            mode=request.advanced.decode_mode, memory_bytes=decode_memory_bytes, spill_dir=str(spill_dir)
        ),
    )


def _plan_stage(request: ResolvedRequest, card: ModelCard) -> StagePlan:
    modules = request.advanced.num_modules or card.default_num_modules
    return StagePlan(_plan_denoise(request, card), request.steps, modules=modules)


def _plan_denoise(request: ResolvedRequest, card: ModelCard) -> DenoisePlan:
    scale, advanced = card.vae_scale, request.advanced
    moving = advanced.tile_grid == "moving"
    tile_px = advanced.tile_size_px or card.native_size_px
    outer_px = tile_px // _SHARED if advanced.overlap_px is None else advanced.overlap_px
    overlap_px = 0 if moving and advanced.overlap_px is None else outer_px
    return DenoisePlan(
        height=request.height_px // scale,
        width=request.width_px // scale,
        wrap=(request.seamless in ("y", "both"), request.seamless in ("x", "both")),
        tile_size=tile_px // scale,
        overlap=overlap_px // scale,
        outer_overlap=outer_px // scale,
        moving=moving,
        seed=request.seed,
    )
