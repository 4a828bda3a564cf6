"""What a tile attends to beside itself: nothing yet, since no model makes a context."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Context:
    """Keys and values of one step that every tile may attend to, a function of canvas, tile and step alone.

    Args:
        layers: by the name of the attention layer; empty: tiles attend to themselves only.
    """

    layers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
