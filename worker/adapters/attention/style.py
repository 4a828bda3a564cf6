"""Queries and keys of tiles with the statistics of a style picture's, before they attend to it.

Hertz et al., "Style Aligned Image Generation via Shared Attention" (2024), eq. 4 and 5: AdaIN (Huang and Belongie 2017,
eq. 8) of queries and keys, in each channel of each head over all tokens of one picture. Where a transformer turns them
by their positions (Su et al. 2021), statistics are of what they are before: turned, a channel's mean is near zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.adapters.attention.rotary import turn

_EPSILON = 1e-5
Turn = tuple[Tensor, Tensor]
"""(cosine, sine) of the angles by which positions turn tokens, (B, tokens, D / 2) each."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and deviation over tokens, (B, H, 1, D) each, float32."""

    mean: Tensor
    deviation: Tensor


def measure(states: Tensor, own: Turn | None) -> Statistics:
    """Of queries or keys (B, H, tokens, D)."""
    variance, mean = torch.var_mean(_turn_back(states, own).float(), dim=2, correction=0, keepdim=True)
    return Statistics(mean, (variance + _EPSILON).sqrt())


def restyle(states: Tensor, own: Turn | None, wanted: Statistics, strength: Tensor) -> Tensor:
    """Queries or keys (B, H, tokens, D) moved by a share `strength`, (), towards the wanted statistics."""
    plain, found = _turn_back(states, own).float(), measure(states, own)
    styled = (plain - found.mean) / found.deviation * wanted.deviation + wanted.mean
    moved = torch.lerp(plain, styled, strength)
    return (moved if own is None else turn(moved, *own)).to(states.dtype)


def _turn_back(states: Tensor, own: Turn | None) -> Tensor:
    return states if own is None else turn(states.float(), own[0], -own[1])
