"""How much of a decode is done at once, by the memory that there is."""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from worker.engine.decoder import Attend, Decoder, Fork, Join, Local, Normalize
from worker.engine.plan import DecodePlan

_AT_ONCE = 4  # activations: input, output, set aside, work space


def choose_split(latent: Tensor, decoder: Decoder, plan: DecodePlan) -> int:
    """How many operations run on the whole canvas.

    All up to the last attention, then as many as fit `memory_bytes`, as `measure_head` counts. None where nothing needs the whole canvas: then all streams.
    """
    if not any(isinstance(operation, Normalize | Attend) for operation in decoder.operations):
        return 0
    attentions = [
        index for index, operation in enumerate(decoder.operations) if isinstance(operation, Attend)
    ]
    first_allowed = attentions[-1] if attentions else -1
    split = 0
    for index, (size_bytes, inside_fork) in enumerate(_walk(latent, decoder)):
        if split > first_allowed and _AT_ONCE * size_bytes > plan.memory_bytes:
            break
        split = split if inside_fork else index + 1
    return split


def measure_head(latent: Tensor, decoder: Decoder, split: int) -> int:
    """Bytes that the first operations take at the most when they run on the whole canvas."""
    sizes = [size_bytes for size_bytes, _ in _walk(latent, decoder)]
    return _AT_ONCE * max(sizes[:split], default=0)


def choose_mode(latent: Tensor, decoder: Decoder, plan: DecodePlan) -> Literal["exact", "bounded"]:
    """Resolve `auto`: exact while what all tiles hold stays under four times `memory_bytes`."""
    if plan.mode != "auto":
        return plan.mode
    held_bytes = 2 * max(size_bytes for size_bytes, _ in _walk(latent, decoder))
    return "exact" if held_bytes <= 4 * plan.memory_bytes else "bounded"


def _walk(latent: Tensor, decoder: Decoder) -> Iterator[tuple[int, bool]]:
    """(bytes of the whole canvas behind it, whether something is set aside) for each operation."""
    plane_bytes = latent[0].numel() * decoder.dtype.itemsize
    inside_fork = False
    for operation, channels in zip(decoder.operations, decoder.channels, strict=True):
        plane_bytes *= operation.scale**2 if isinstance(operation, Local) else 1
        inside_fork = isinstance(operation, Fork) or (inside_fork and not isinstance(operation, Join))
        yield plane_bytes * channels, inside_fork
