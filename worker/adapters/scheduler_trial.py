"""Whether a scheduler can do what the loop asks of it: found out by doing it, before any job.

A model that knows the clean latent must be led there from pure noise, and a checkpoint in the middle
must not change a byte. Each canvas here has 16 latent pixels, so a trial takes milliseconds.
"""

from collections.abc import Callable, Iterator
from typing import cast

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from worker.adapters.errors import ModelError, UnsupportedSchedulerError
from worker.adapters.scheduler_types import AnyScheduler
from worker.adapters.schedulers import DiffusersScheduler, SchedulerUse, make_scheduler

_CPU = torch.device("cpu")
_SHAPE = (4, 4, 4)  # even, as packed latents have to be
_CLEAN = 0.4  # some schedulers clip what they take for the clean latent to ±1
_MOST_OFF = 0.25  # schedules may end at a little noise: Stable Diffusion 1.5's DDIM at 0.03


def require_working_scheduler(kept: AnyScheduler, use: SchedulerUse, family: str) -> None:
    """Try the folder's scheduler, and name those that work where it does not.

    Raises:
        UnsupportedSchedulerError: the folder's does not work, with the reason and those that do.
    """
    try:
        try_scheduler(kept, use)
    except Exception as error:
        working = ", ".join(_find_working(kept, use)) or "none"
        raise UnsupportedSchedulerError(
            f"scheduler: {type(kept).__name__}, as its configuration is, does not work with {family}: "
            f"{str(error) or repr(error)}; "
            f"allowed, with the same configuration: {working}"
        ) from error


def try_scheduler(kept: AnyScheduler, use: SchedulerUse) -> None:
    """Run it on a tiny canvas: from noise to a picture, over a checkpoint, and from the middle on.

    Raises:
        Exception: it does not work; each scheduler has its own reasons, and raises what it likes.
    """
    whole = _run(make_scheduler(kept, use, _CPU))
    off = float((whole - _CLEAN).square().mean().sqrt())
    if not off < _MOST_OFF:
        raise ValueError(
            f"it does not lead from noise to a picture (a model that knows it ends {off:.2g} beside it)"
        )
    if not torch.equal(whole, _run(make_scheduler(kept, use, _CPU), make_scheduler(kept, use, _CPU))):
        raise ValueError("it goes on from a checkpoint to other bytes")
    if use.steps > 1:
        tail = make_scheduler(kept, use, _CPU)
        tail.skip(use.steps // 2)
        _run(tail, noisy=tail.add_noise(_clean(), _noise()))


def find_least_steps(kept: AnyScheduler, use: Callable[[int], SchedulerUse], most: int) -> int:
    """The smallest number of steps that it accepts, such as 4 for PNDM with Runge-Kutta steps; `most` if none."""
    return next((steps for steps in range(1, most) if _accepts(kept, use(steps))), most)


def find_most_steps(kept: AnyScheduler, use: Callable[[int], SchedulerUse], least: int, most: int) -> int:
    """The largest number of steps up to `most` that it accepts, as it does all between."""
    if _accepts(kept, use(most)):  # nearly always; each try costs milliseconds of every start
        return most
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if _accepts(kept, use(middle)) else (least, middle - 1)
    return least


def _accepts(kept: AnyScheduler, use: SchedulerUse) -> bool:
    try:
        make_scheduler(kept, use, _CPU)
    except ModelError:
        return False
    return True


def _find_working(kept: AnyScheduler, use: SchedulerUse) -> Iterator[str]:
    for kind in list_schedulers():
        try:
            try_scheduler(kind.from_config(kept.config), use)
        except Exception:
            continue
        yield kind.__name__


def list_schedulers() -> list[type[AnyScheduler]]:
    """All that diffusers exports and can import."""
    found: list[type[AnyScheduler]] = []
    for name in sorted(dir(diffusers)):
        if name.endswith("Scheduler") and not name.startswith("Flax"):
            kind = getattr(diffusers, name)
            if isinstance(kind, type) and issubclass(kind, SchedulerMixin):
                found.append(cast(type[AnyScheduler], kind))
    return found


def _run(
    scheduler: DiffusersScheduler, after: DiffusersScheduler | None = None, noisy: Tensor | None = None
) -> Tensor:
    """From noise to the clean canvas, `after` taking over from a checkpoint in the middle."""
    latent = _noise() * scheduler.initial_scale if noisy is None else noisy
    generator, steps = torch.Generator().manual_seed(1), len(scheduler.timesteps)
    for index in range(steps):
        if after is not None and index == steps // 2:
            after.restore(*scheduler.capture())
            scheduler = after
        scheduler.scale_input(latent, index)
        nothing = torch.zeros(_SHAPE)
        change = _clean() - scheduler.estimate_clean(latent, nothing, index)
        prediction = scheduler.guide_clean(nothing, change, index)
        latent = scheduler.step(prediction, index, latent, generator)
    return latent


def _noise() -> Tensor:
    return torch.randn(_SHAPE, generator=torch.Generator().manual_seed(0))


def _clean() -> Tensor:
    return torch.full(_SHAPE, _CLEAN)
