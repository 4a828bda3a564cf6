"""Classifier-free guidance."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pick_branches(states: Tensor, branches: Sequence[int]) -> Tensor:
    """Each prediction's own states (B, ...) out of all branches' (branches, ...).

    Indexing with a list would copy the list to the device, and wait for it.
    """
    return torch.stack([states[branch] for branch in branches])


def stack_branches(free: Tensor | None, prompted: Tensor) -> Tensor:
    """States of all branches, (branches, ...), as guidance wants them: without the prompt, with it."""
    return prompted if free is None else torch.cat([free, prompted])


def guide_classifier_free(predictions: Tensor, scale: float) -> Tensor:
    """Ho & Salimans 2022, eq. 6, in the form ε = ε₀ + s (ε₁ - ε₀).

    Args:
        predictions: (branches, C, h, w): without the prompt, with it; or with it alone.
    """
    if len(predictions) == 1:
        return predictions[0]
    free, prompted = predictions
    return free + scale * (prompted - free)
