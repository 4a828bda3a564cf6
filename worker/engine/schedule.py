"""What the loop needs of a diffusers scheduler, and how its state is kept."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worker.engine.errors import SchedulerStateError

Scalar = bool | int | float | str | None
Scalars = dict[str, "Scalar | list[Scalar]"]


class SchedulerOutput(Protocol):
    prev_sample: Tensor


class Scheduler(Protocol):
    """Any diffusers scheduler on which `set_timesteps` was called.

    Flow matching schedulers have neither `init_noise_sigma` nor `scale_model_input`: both are 1.
    """

    timesteps: Tensor

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, generator: torch.Generator
    ) -> SchedulerOutput: ...


def initial_scale(scheduler: Scheduler) -> float:
    """Standard deviation of the noise that the first step expects."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def skip_to_tail(scheduler: Scheduler, skipped: int) -> int:
    """Leave out the first steps, as diffusers' image-to-image pipelines do.

    Returns:
        the index of the first timestep that is left; a step of second order has two.
    """
    if skipped == 0:
        return 0
    if hasattr(scheduler, "plms_timesteps"):
        return _skip_plms(scheduler, skipped)
    first = skipped * int(getattr(scheduler, "order", 1))
    begin_at: Callable[[int], None] | None = getattr(scheduler, "set_begin_index", None)
    if begin_at is not None:
        begin_at(first)
    return first


def _skip_plms(scheduler: Scheduler, skipped: int) -> int:
    """PNDM sings its second timestep twice, so a tail has to repeat its own second one."""
    plain = torch.cat([scheduler.timesteps[:2], scheduler.timesteps[3:]])[skipped:]
    scheduler.timesteps = torch.cat([plain[:2], plain[1:2], plain[2:]])
    return 0


def add_noise(scheduler: Scheduler, clean: Tensor, noise: Tensor, first: int) -> Tensor:
    """A clean canvas (C, H, W) as noisy as timestep `first` expects it, by the scheduler's own formula."""
    timestep = scheduler.timesteps[first : first + 1]
    if hasattr(scheduler, "scale_noise"):
        mix: Callable[[Tensor, Tensor, Tensor], Tensor] = getattr(scheduler, "scale_noise")  # noqa: B009
        return mix(clean[None], timestep, noise[None])[0]
    add: Callable[[Tensor, Tensor, Tensor], Tensor] = getattr(scheduler, "add_noise")  # noqa: B009
    return add(clean[None], noise[None], timestep)[0]


def scale_input(scheduler: Scheduler, latent: Tensor, timestep: Tensor) -> Tensor:
    """The latent as the model wants to see it."""
    scale: Callable[[Tensor, Tensor], Tensor] | None = getattr(scheduler, "scale_model_input", None)
    return latent if scale is None else scale(latent, timestep)


def capture_state(scheduler: object) -> tuple[dict[str, Tensor], Scalars]:
    """All that a scheduler remembers between steps, split into tensors and JSON scalars.

    Raises:
        SchedulerStateError: an attribute is neither (a Brownian tree, say).
    """
    tensors: dict[str, Tensor] = {}
    scalars: Scalars = {}
    for name, value in vars(scheduler).items():
        if name != "_internal_dict":
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
        case list():
            scalars[f"{name}:length"] = len(value)  # pyright: ignore[reportUnknownArgumentType]
            for index, item in enumerate(value):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                _capture(f"{name}:{index}", item, tensors, scalars)  # pyright: ignore[reportUnknownArgumentType]
        case bool() | int() | float() | str() | None:
            scalars[name] = value
        case _:
            raise SchedulerStateError(f"attribute {name} is a {type(value).__name__}, which is not kept")


def restore_state(
    scheduler: object, tensors: dict[str, Tensor], scalars: Scalars, device: torch.device
) -> None:
    """Put back what `capture_state` took."""
    flat = {**_tensors_on(tensors, device, scheduler), **scalars}
    for name in flat:
        stem, _, suffix = name.partition(":")
        if not suffix:
            setattr(scheduler, name, flat[name])
        elif suffix == "length":
            setattr(scheduler, stem, [flat[f"{stem}:{index}"] for index in range(int(str(flat[name])))])


def _tensors_on(tensors: dict[str, Tensor], device: torch.device, scheduler: object) -> dict[str, object]:
    placed: dict[str, object] = {}
    for name, tensor in tensors.items():
        if name.endswith(":numpy"):
            placed[name.removesuffix(":numpy")] = tensor.numpy()
        else:
            # A canvas goes back to the device; small tables stay where the scheduler keeps them.
            current = getattr(scheduler, name, None)
            placed[name] = tensor.to(current.device if isinstance(current, Tensor) else device)
    return placed


def estimate_clean(latent: Tensor, prediction: Tensor, timestep: Tensor, scheduler: Scheduler) -> Tensor:
    """The clean latent x̂0 that a prediction implies, for previews.

    Three parametrisations: flow x̂0 = x - σ v (Lipman et al. 2023); variance exploding, told by a
    scheduler that scales its model's input by 1/√(σ²+1) (Karras et al. 2022, eq. 7); variance
    preserving (Ho et al. 2020, eq. 15; Salimans & Ho 2022, eq. 8 for v).

    Args:
        latent: unscaled crop (C, h, w) that the prediction, same shape, was made for.
    """
    kind = str(getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon"))
    if kind == "flow_prediction" or not hasattr(scheduler, "alphas_cumprod"):
        return latent - _flow_sigma(scheduler) * prediction
    alpha, sigma = _noise_level(scheduler, timestep)
    preserving = latent * alpha if _scaling(scheduler, timestep) != 1.0 else latent
    if kind == "v_prediction":
        return alpha * preserving - sigma * prediction
    return prediction if kind == "sample" else (preserving - sigma * prediction) / max(alpha, 1e-3)


def guide_clean(prediction: Tensor, change: Tensor, timestep: Tensor, scheduler: Scheduler) -> Tensor:
    """The prediction that implies a clean latent changed by `change`: `estimate_clean` the other way round.

    That is linear in the prediction, so what it makes of 1 is its slope, whatever the parametrisation.
    """
    one = torch.ones(1)
    slope = float(estimate_clean(torch.zeros(1), one, timestep, scheduler))
    return prediction + change / slope


def _flow_sigma(scheduler: object) -> float:
    sigmas: Tensor = getattr(scheduler, "sigmas")  # noqa: B009
    step = getattr(scheduler, "step_index", None)
    return float(sigmas[(getattr(scheduler, "begin_index", None) or 0) if step is None else step])


def _noise_level(scheduler: Scheduler, timestep: Tensor) -> tuple[float, float]:
    """(α, σ) with α² + σ² = 1."""
    scaling = _scaling(scheduler, timestep)
    if scaling != 1.0:
        return scaling, (1 - scaling**2) ** 0.5
    table: Tensor = getattr(scheduler, "alphas_cumprod")  # noqa: B009
    squared = float(table[int(timestep)])
    return squared**0.5, (1 - squared) ** 0.5


def _scaling(scheduler: Scheduler, timestep: Tensor) -> float:
    return float(scale_input(scheduler, torch.ones(1, device=timestep.device), timestep))
