"""Classifier-free guidance: the branches of a prediction and how they become one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.ensemble import Query

EncodedPrompt = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""(prompt, negative prompt, pooled prompt, pooled negative prompt), as diffusers' `encode_prompt` returns them."""


def pick_branches(states: Tensor, branches: Sequence[int]) -> Tensor:
    """Each prediction's own states (B, ...) out of all branches' (branches, ...).

    Indexing with a list would copy the list to the device, and wait for it.
    """
    return torch.stack([states[branch] for branch in branches])


def pick_states(states: Tensor, queries: Sequence[Query]) -> Tensor:
    """Each prediction's own states (B, ...) out of those of all prompts and branches, (prompts, branches, ...)."""
    return torch.stack([states[query.prompt, query.branch] for query in queries])


def stack_branches(negative: Tensor | None, prompted: Tensor) -> Tensor:
    """States of all branches, (branches, ...), in diffusers' order: the negative prompt's, the prompt's."""
    return prompted if negative is None else torch.cat([negative, prompted])


def guide_classifier_free(predictions: Tensor, scale: float) -> Tensor:
    """Ho & Salimans 2022, eq. 6, in the form ε = ε₀ + s (ε₁ - ε₀).

    Args:
        predictions: (branches, C, h, w): with the negative prompt, with the prompt; or with the prompt alone.
    """
    if len(predictions) == 1:
        return predictions[0]
    negative, prompted = predictions
    return negative + scale * (prompted - negative)
