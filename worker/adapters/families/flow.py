"""How the pipelines of the families that are trained by flow matching time their steps."""

from typing import cast

import numpy as np
import numpy.typing as npt
from diffusers.pipelines.flux.pipeline_flux import (
    calculate_shift,  # pyright: ignore[reportUnknownVariableType]  # its first argument has no type
)

from worker.adapters.scheduler_types import AnyScheduler
from worker.engine.plan import DenoisePlan

Sigmas = npt.NDArray[np.float64]


def shift_by_tokens(kept: AnyScheduler, tokens: int, max_shift: float = 1.15) -> float:
    """Esser et al. 2024, section 5.3.2: more pixels need more noise to hide them.

    What counts are the pixels that a transformer sees at once, hence a tile's, not the canvas'.

    Args:
        max_shift: the pipeline's, where the folder has none.
    """
    config = kept.config
    lengths = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    shifts = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return cast(float, calculate_shift(tokens, *lengths, *shifts))


def even_sigmas(steps: int) -> Sigmas:
    """From pure noise to one step before none, as FLUX' and Qwen-Image's pipelines space them.

    An array, as there: some schedulers calculate with it, others refuse it.
    """
    return np.linspace(1.0, 1 / steps, steps)


def own_sigmas(kept: AnyScheduler, sigmas: Sigmas) -> Sigmas | None:
    """None where the scheduler derives flow matching's own, which FLUX' pipelines then leave to it."""
    return None if kept.config.get("use_flow_sigmas") else sigmas


def count_tokens(plan: DenoisePlan, patch: int) -> int:
    """Of one tile, `patch` latent pixels a side each."""
    height, width = plan.tile_shape
    return (height // patch) * (width // patch)
