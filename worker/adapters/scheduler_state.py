"""All that one of diffusers' schedulers remembers between steps, taken out and put back."""

import numpy as np
import torch
from torch import Tensor

from worker.engine.scheduler import Scalars

_CONFIGURED = "_internal_dict"


def capture_state(scheduler: object) -> tuple[dict[str, Tensor], Scalars]:
    """Its attributes, split into tensors in main memory and JSON scalars; functions come from its configuration.

    Raises:
        TypeError: an attribute is none of these (a Brownian tree, say).
    """
    tensors: dict[str, Tensor] = {}
    scalars: Scalars = {}
    for name, value in vars(scheduler).items():
        if name != _CONFIGURED and not callable(value):
            _capture(name, value, tensors, scalars)
    return tensors, scalars


def _capture(name: str, value: object, tensors: dict[str, Tensor], scalars: Scalars) -> None:
    match value:
        case Tensor():
            tensors[name] = value.detach().cpu().contiguous()
        case np.ndarray():
            tensors[f"{name}:numpy"] = torch.as_tensor(value)
        case np.generic():
            scalars[name] = value.item()
        case list() | tuple():  # a size, which nobody asks for its type
            scalars[f"{name}:length"] = len(value)
            for index, item in enumerate(value):
                _capture(f"{name}:{index}", item, tensors, scalars)
        case bool() | int() | float() | str() | None:
            scalars[name] = value
        case _:
            raise TypeError(
                f"it keeps a {type(value).__name__} ({name}), which cannot be written to a checkpoint"
            )


def restore_state(
    scheduler: object, tensors: dict[str, Tensor], scalars: Scalars, device: torch.device
) -> None:
    """Put back what `capture_state` took."""
    flat = {**_place(tensors, device, scheduler), **scalars}
    for name in flat:
        stem, _, suffix = name.partition(":")
        if not suffix:
            setattr(scheduler, name, flat[name])
        elif suffix == "length":
            setattr(scheduler, stem, [flat[f"{stem}:{index}"] for index in range(int(str(flat[name])))])


def _place(tensors: dict[str, Tensor], device: torch.device, scheduler: object) -> dict[str, object]:
    """A canvas goes back to the device; small tables stay where the scheduler keeps them."""
    placed: dict[str, object] = {}
    for name, tensor in tensors.items():
        if name.endswith(":numpy"):
            placed[name.removesuffix(":numpy")] = tensor.numpy()
        else:
            current = getattr(scheduler, name, None)
            placed[name] = tensor.to(current.device if isinstance(current, Tensor) else device)
    return placed
