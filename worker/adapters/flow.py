"""Schedules of the families that are trained by flow matching."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from worker.engine.plan import DenoisePlan, StagePlan
from worker.engine.schedule import Scheduler


def make_flow_scheduler(
    kept: FlowMatchEulerDiscreteScheduler,
    stage: StagePlan,
    device: torch.device,
    shift: float,
    sigmas: Sequence[float] | None = None,
) -> Scheduler:
    """A fresh scheduler after the folder's, its timesteps set.

    Args:
        kept: the folder's.
        shift: `mu` of a schedule that depends on the resolution; others have their own.
        sigmas: noise levels before the shift, if the family has its own.
    """
    dynamic = kept.config.get("use_dynamic_shifting", False)
    derived = kept.config.get("use_flow_sigmas", False)
    scheduler = cast(FlowMatchEulerDiscreteScheduler, type(kept).from_config(kept.config))
    scheduler.set_timesteps(
        stage.steps,
        device=device,
        mu=shift if dynamic else None,
        sigmas=None if sigmas is None or derived else list(sigmas),
    )
    return cast(Scheduler, scheduler)


def shift_by_tokens(kept: FlowMatchEulerDiscreteScheduler, tokens: int) -> float:
    """Esser et al. 2024, section 5.3.2: more pixels need more noise to hide them.

    What counts are the pixels that a transformer sees at once, hence a tile's, not the canvas'.
    """
    config = kept.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )


def even_sigmas(steps: int) -> list[float]:
    """From pure noise to one step before none, as FLUX' and Qwen-Image's pipelines lay them."""
    return np.linspace(1.0, 1 / steps, steps).tolist()


def count_tokens(plan: DenoisePlan, patch: int) -> int:
    """Of one tile, `patch` latent pixels a side each."""
    height, width = min(plan.tile_size, plan.height), min(plan.tile_size, plan.width)
    return (height // patch) * (width // patch)
