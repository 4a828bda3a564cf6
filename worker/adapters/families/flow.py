"""How the pipelines of the families that are trained by flow matching time their steps."""

# diffusers types what all its schedulers share as nothing: each has its own attributes and arguments.
# pyright: reportAttributeAccessIssue=false

import numpy as np
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from worker.engine.plan import DenoisePlan


def shift_by_tokens(kept: SchedulerMixin, tokens: int, max_shift: float = 1.15) -> float:
    """Esser et al. 2024, section 5.3.2: more pixels need more noise to hide them.

    What counts are the pixels that a transformer sees at once, hence a tile's, not the canvas'.

    Args:
        max_shift: the pipeline's, where the folder has none.
    """
    config = kept.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", max_shift),
    )


def even_sigmas(steps: int) -> np.ndarray:
    """From pure noise to one step before none, as FLUX' and Qwen-Image's pipelines lay them.

    An array, as there: some schedulers calculate with it, others refuse it.
    """
    return np.linspace(1.0, 1 / steps, steps)


def own_sigmas(kept: SchedulerMixin, sigmas: np.ndarray) -> np.ndarray | None:
    """None where the scheduler derives flow matching's own, which FLUX' pipelines then leave to it."""
    return None if kept.config.get("use_flow_sigmas") else sigmas


def count_tokens(plan: DenoisePlan, patch: int) -> int:
    """Of one tile, `patch` latent pixels a side each."""
    height, width = plan.tile_shape
    return (height // patch) * (width // patch)
