"""diffusers' schedulers, set up and called as each family's own pipeline does it."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, cast

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
    retrieve_timesteps,  # pyright: ignore[reportUnknownVariableType]  # its scheduler and options have no types
)
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor

from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.parametrisation import Line, copy_tables, match_noise, read_line, read_plain_levels
from worker.adapters.scheduler_types import (
    AddsNoise,
    AnyScheduler,
    CountsSteps,
    ScalesInput,
    ScalesNoise,
)
from worker.engine.attention import Clock
from worker.engine.scheduler import Scalars


@dataclass(frozen=True, slots=True)
class Packing:
    """The form in which a pipeline hands latents to its scheduler: where noise is drawn, its order counts.

    Args:
        pack: from (1, C, H, W).
        unpack: (packed, H, W) -> (1, C, H, W).
    """

    pack: Callable[[Tensor], Tensor] = lambda latent: latent
    unpack: Callable[[Tensor, int, int], Tensor] = lambda packed, height, width: packed


@dataclass(frozen=True, slots=True)
class SchedulerUse:
    """How a family's pipeline uses its scheduler.

    Args:
        steps: from pure noise on.
        timing: further arguments of `set_timesteps`: `sigmas` before the shift, and the shift `mu`.
        scales: whether noise and the model's input are scaled as the scheduler says.
        eta: whether the pipeline passes its default of 0 on; else the scheduler's own default counts.
        from_first: whether the index of the first step is set rather than looked up.
    """

    steps: int
    timing: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scales: bool = False
    eta: bool = False
    from_first: bool = False
    packing: Packing = Packing()


def make_scheduler(kept: AnyScheduler, use: SchedulerUse, device: torch.device) -> "DiffusersScheduler":
    """Make one like the folder's, which nothing has stepped with, its timesteps set.

    Raises:
        UnsupportedConditionError: it cannot take so many steps, or so few.
    """
    # Some take a quarter of a second to be made from their configuration, which is frozen and cannot be copied.
    scheduler = deepcopy(kept, {id(kept.config): kept.config})
    try:
        retrieve_timesteps(scheduler, use.steps, device, **use.timing)
        made = DiffusersScheduler(scheduler, use, device)
        _require_clock(made.timesteps, getattr(scheduler, "sigmas", made.timesteps))
    except Exception as error:  # each scheduler has its own reasons, and raises what it likes
        raise UnsupportedConditionError(
            f"steps: {use.steps} is not possible with {type(kept).__name__}: {str(error) or repr(error)}"
        ) from error
    return made


def _require_clock(timesteps: Tensor, levels: Tensor) -> None:
    """Beta distributions and shifts to a terminal level divide by what is 0 for one step alone."""
    if not len(timesteps) or not bool(timesteps.isfinite().all() and levels.isfinite().all()):
        raise ValueError(
            f"its timesteps are {list_numbers(timesteps)[:4]}, its noise levels {list_numbers(levels)[:4]}"
        )


def list_numbers(values: Tensor) -> list[float]:
    """The entries of a tensor with one axis, read in one copy from its device."""
    return cast(list[float], values.cpu().double().tolist())  # pyright: ignore[reportUnknownMemberType]  # items have no type


class DiffusersScheduler:
    """One of diffusers' schedulers behind the loop's protocol."""

    def __init__(self, scheduler: AnyScheduler, use: SchedulerUse, device: torch.device) -> None:
        parameters = signature(scheduler.step).parameters
        self._scheduler, self._use, self._device = scheduler, use, device
        self._draws = "generator" in parameters
        self._options: dict[str, object] = {"eta": 0.0} if use.eta and "eta" in parameters else {}
        self._first = 0
        self._read_tables()
        if use.from_first:
            cast(CountsSteps, scheduler).set_begin_index(0)

    def _read_tables(self) -> None:
        self.timesteps = self._scheduler.timesteps[self._first :]
        self._clock = list_numbers(self.timesteps)
        self._tables = copy_tables(self._scheduler)

    @property
    def initial_scale(self) -> float:
        return float(self._scheduler.init_noise_sigma) if self._use.scales else 1.0

    def skip(self, steps: int) -> None:
        """As diffusers' image-to-image pipelines do; a step of second order has two timesteps."""
        if steps == 0:
            return
        if isinstance(self._scheduler, PNDMScheduler):
            self._scheduler = _skip_plms(self._scheduler, self._use.steps, steps, self._device)
        else:
            self._first = steps * self._scheduler.order
            if isinstance(self._scheduler, CountsSteps):
                self._scheduler.set_begin_index(self._first)
        self._read_tables()

    def add_noise(self, clean: Tensor, noise: Tensor, index: int = 0) -> Tensor:
        if index == len(self.timesteps):
            return clean
        # It moves tables to the latent's device, where steps round differently.
        scheduler, timestep = copy(self._scheduler), self.timesteps[index : index + 1]
        if isinstance(scheduler, CountsSteps):
            # Else it takes the step that it is at itself, or looks the timestep up, of which there may be two.
            _begin_at(scheduler, self._first + index)
        if isinstance(scheduler, ScalesNoise):
            return scheduler.scale_noise(clean[None], timestep, noise[None])[0]
        if isinstance(scheduler, AddsNoise):
            return scheduler.add_noise(clean[None], noise[None], timestep)[0]
        signal, level = read_plain_levels(self._tables, self._first + index)
        return signal * clean + level * noise

    def scale_input(self, latent: Tensor, index: int) -> Tensor:
        if self._use.scales and isinstance(self._scheduler, ScalesInput):
            return self._scheduler.scale_model_input(latent, self.timesteps[index])
        return latent

    def match_noise(self, index: int, share: float) -> Clock:
        place, scaling = self._first + index, float(self.scale_input(torch.ones(()), index))
        gain, timestep = match_noise(self._scheduler, self._tables, place, self._clock[index], scaling, share)
        kind = self.timesteps.dtype
        # What counts in whole timesteps was trained on them.
        told = timestep if kind.is_floating_point else round(timestep)
        return Clock(gain, torch.tensor(told, dtype=kind, device=self.timesteps.device))

    def estimate_clean(self, latent: Tensor, prediction: Tensor, index: int) -> Tensor:
        line = self._read_line(index)
        return line.of_latent * latent + line.of_prediction * prediction

    def guide_clean(self, prediction: Tensor, change: Tensor, index: int) -> Tensor:
        slope = self._read_line(index).of_prediction
        return prediction + change / slope if slope else prediction

    def _read_line(self, index: int) -> Line:
        # A number and not a list of one, so that it may lie elsewhere than the levels (KDPM2's, on a GPU).
        scaling = float(self.scale_input(torch.ones(()), index))
        return read_line(self._scheduler, self._tables, self._first + index, self._clock[index], scaling)

    def step(self, prediction: Tensor, index: int, latent: Tensor, generator: torch.Generator) -> Tensor:
        pack, options = self._use.packing.pack, self._options
        if self._draws:
            options = options | {"generator": generator}
        packed, timestep = pack(prediction[None]), self.timesteps[index]
        stepped = self._scheduler.step(packed, timestep, pack(latent[None]), **options, return_dict=False)[0]
        return self._use.packing.unpack(stepped, *latent.shape[1:])[0]

    def capture(self) -> tuple[dict[str, Tensor], Scalars]:
        return capture_state(self._scheduler)

    def restore(self, tensors: dict[str, Tensor], scalars: Scalars) -> None:
        restore_state(self._scheduler, tensors, scalars, self._device)


def _begin_at(scheduler: CountsSteps, index: int) -> None:
    """Make `index` of its own list the next step, whatever was done before."""
    scheduler.set_begin_index(index)
    vars(scheduler)["_step_index"] = None


def _skip_plms(scheduler: AnyScheduler, asked: int, skipped: int, device: torch.device) -> AnyScheduler:
    """PNDM predicts at its second timestep twice, so a tail has to repeat its own second one.

    A tail has no Runge-Kutta steps: they would cover the beginning, which was left out.
    """
    tail = scheduler.from_config(scheduler.config, skip_prk_steps=True)
    tail.set_timesteps(asked, device=device)
    plain = torch.cat([tail.timesteps[:2], tail.timesteps[3:]])[skipped:]
    tail.timesteps = torch.cat([plain[:2], plain[1:2], plain[2:]])
    return tail


_CONFIGURED = "_internal_dict"


def capture_state(scheduler: object) -> tuple[dict[str, Tensor], Scalars]:
    """Its attributes, split into tensors and JSON scalars; functions come from its configuration.

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
            # A copy: PNDM, for one, adds to what it remembers in place.
            tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        case np.ndarray():
            tensors[f"{name}:numpy"] = torch.tensor(value)
        case np.generic():
            scalars[name] = value.item()
        case list() | tuple():  # a size, whose type does not matter
            items = cast(Sequence[object], value)
            scalars[f"{name}:length"] = len(items)
            for index, item in enumerate(items):
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
            placed[name.removesuffix(":numpy")] = tensor.numpy().copy()
        else:
            current = getattr(scheduler, name, None)
            placed[name] = tensor.to(current.device if isinstance(current, Tensor) else device, copy=True)
    return placed
