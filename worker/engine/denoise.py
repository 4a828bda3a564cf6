"""The loop: the canvas owns the state, every tile listens to it at every step (decision 0001)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from worker.engine.ensemble import Ensemble
from worker.engine.errors import NonFiniteLatentError
from worker.engine.fuse import Fusion
from worker.engine.grid import Tile
from worker.engine.plan import DenoisePlan
from worker.engine.schedule import Scalars, Scheduler, capture_state, estimate_clean, scale_input
from worker.engine.warned import Warned


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a later process needs to go on, to the same bytes. `step` steps are done."""

    step: int
    tensors: dict[str, Tensor]
    scalars: Scalars


@dataclass(frozen=True, slots=True)
class TilePredicted:
    """One tile of a step was heard; `clean` (C, h, w) is what it believes the picture to be.

    On a GPU it may not have been computed yet: reading it waits for the device.
    """

    index: int
    tile: Tile
    clean: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """All tiles of a step were fused and the canvas advanced. `checkpoint()` keeps this moment."""

    index: int
    steps: int
    tiles: int
    checkpoint: Callable[[], Checkpoint]


@torch.inference_mode()
def denoise(
    latent: Tensor,
    plan: DenoisePlan,
    ensemble: Ensemble,
    scheduler: Scheduler,
    generator: torch.Generator,
    first_step: int = 0,
) -> Iterator[TilePredicted | Step | Warned]:
    """Carry a noisy canvas to a clean one, all tiles in step with each other.

    The caller drives: it reports each step, and cancels by closing the iterator. The host waits for
    the device once a step, when it asks whether all is finite.

    Args:
        latent: noisy canvas, (C, H, W), float32, latent pixels; overwritten with each step's result.
        generator: source of the scheduler's own noise, one draw for the whole canvas.

    Raises:
        NonFiniteLatentError: names the first broken step and tile.
    """
    steps = len(scheduler.timesteps)
    clocks = scheduler.timesteps.cpu()
    for index in range(first_step, steps):
        timestep = scheduler.timesteps[index]
        tiles = plan.grid_at(index, steps).tiles
        fusion, heard = Fusion(like=latent), list[tuple[Tile, Tensor]]()
        scaled = scale_input(scheduler, latent, timestep)
        for tile, prediction in ensemble.predict(scaled, timestep, tiles):
            fusion.add(tile, prediction)
            heard.append((tile, prediction))
            clean = estimate_clean(tile.crop(latent), prediction, clocks[index], scheduler)
            yield TilePredicted(index, tile, clean)
        yield from ensemble.take_warnings()
        latent.copy_(advance(scheduler, fusion.mean(), timestep, latent, generator))
        if not latent.isfinite().all():
            raise NonFiniteLatentError(
                f"step {index + 1} of {steps}, timestep {float(clocks[index]):g}: {_name_broken(heard)}"
            )
        yield Step(index, steps, len(tiles), lambda done=index + 1: keep(done, latent, scheduler, generator))


def _name_broken(heard: list[tuple[Tile, Tensor]]) -> str:
    """Whose prediction holds NaN or infinity, in latent pixels. Asked only after the canvas has broken."""
    for number, (tile, prediction) in enumerate(heard, start=1):
        if not prediction.isfinite().all():
            place = f"rows {tile.top} to {tile.top + tile.height}, columns {tile.left} to {tile.left + tile.width}"
            return f"tile {number} of {len(heard)} ({place} of the latent) is not finite"
    return "all tiles are finite, the scheduler's step is not"


def advance(
    scheduler: Scheduler, prediction: Tensor, timestep: Tensor, latent: Tensor, generator: torch.Generator
) -> Tensor:
    """One scheduler step of the whole canvas (C, H, W)."""
    draws = "generator" in signature(scheduler.step).parameters
    options = {"generator": generator} if draws else {}
    return scheduler.step(prediction[None], timestep, latent[None], **options).prev_sample[0]


def keep(step: int, latent: Tensor, scheduler: Scheduler, generator: torch.Generator) -> Checkpoint:
    """The checkpoint after `step` steps."""
    tensors, scalars = capture_state(scheduler)
    kept = {f"scheduler.{name}": tensor.clone() for name, tensor in tensors.items()}
    kept |= {"latent": latent.cpu().clone(), "generator": generator.get_state()}
    return Checkpoint(step, kept, scalars)
