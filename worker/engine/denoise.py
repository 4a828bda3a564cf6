"""The denoising loop: the canvas owns the state, and every tile is predicted from it at every step (decision 0001)."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.engine.attention import Views
from worker.engine.canvas import Rectangle
from worker.engine.ensemble import Ensemble
from worker.engine.errors import NonFiniteLatentError
from worker.engine.fuse import Fusion
from worker.engine.guidance import LowBand
from worker.engine.inpaint import Inpainting
from worker.engine.plan import DenoisePlan
from worker.engine.scheduler import Scalars, Scheduler
from worker.engine.style import Style
from worker.engine.sync import Sync
from worker.engine.warned import Warned


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a later process needs to go on, to the same bytes. `step` steps of all stages are done.

    Its tensors may lie on the device. Nothing writes to them.
    """

    step: int
    tensors: dict[str, Tensor]
    scalars: Scalars


@dataclass(frozen=True, slots=True)
class TilePredicted:
    """One tile of a step was predicted; `clean` (C, h, w) is the clean latent that the prediction implies.

    On a GPU it may not have been computed yet: reading it waits for the device.
    """

    index: int
    tile: Rectangle
    clean: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """All tiles of a step were fused and the canvas advanced.

    `index` and `steps` count over all stages, `tiles` as `DenoisePlan.count_predictions`, `work` as `DenoisePlan.weigh`.
    """

    index: int
    steps: int
    tiles: int
    work: float
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Span:
    """Which steps of the picture belong to a stage.

    Args:
        before: steps of the stages before.
        total: steps of all stages; None: no other stage comes before or after.
    """

    before: int = 0
    total: int | None = None


@torch.inference_mode()
def denoise(
    latent: Tensor,
    plan: DenoisePlan,
    ensemble: Ensemble,
    scheduler: Scheduler,
    generator: torch.Generator,
    first_step: int = 0,
    span: Span = Span(),
    low_band: LowBand | None = None,
    sync: Sync | None = None,
    inpainting: Inpainting | None = None,
    style: Style | None = None,
) -> Generator[TilePredicted | Step | Warned, None, Tensor]:
    """Carry a noisy canvas to a clean one, all tiles in step with each other.

    The caller drives: it reports each step, and cancels by closing the iterator. The host waits for
    the device once a step, when it asks whether all is finite.

    Args:
        latent: noisy canvas, (C, H, W), float32, latent pixels. It is lent to the scheduler, which may
            look back at it in later steps: each step makes a new canvas.
        generator: source of the scheduler's own noise, one draw for the whole canvas.
        first_step: of this stage, whose steps before are done.

    Returns:
        the clean canvas.

    Raises:
        NonFiniteLatentError: names the first broken step and tile.
    """
    timesteps = scheduler.timesteps
    clocks, steps = timesteps.cpu(), len(timesteps)
    total = span.total or steps
    for index in range(first_step, steps):
        done = span.before + index
        tiles = plan.tiles_at(index, steps)
        rounds = plan.count_rounds(index)
        predict = partial(
            _predict,
            plan=plan,
            tiles=tiles,
            ensemble=ensemble,
            scheduler=scheduler,
            index=index,
            done=done,
            style=style,
        )
        prediction, predictions = yield from predict(latent)
        if rounds > 1 and inpainting is not None:
            latent = inpainting.resample(prediction, latent, scheduler, index)
            prediction, predictions = yield from predict(latent)
        if sync is not None:
            prediction = sync.guide(prediction, latent, scheduler, index)
        if low_band is not None:
            prediction = low_band.guide(prediction, latent, scheduler, index, steps)
        latent = scheduler.step(prediction, index, latent, generator)
        if inpainting is not None:
            latent = inpainting.keep(latent, scheduler, index + 1, tiles)
        if not latent.isfinite().all():
            raise NonFiniteLatentError(
                f"step {done + 1} of {total}, timestep {float(clocks[index]):g}: {_name_broken(predictions)}"
            )
        reference = _find_reference(ensemble, low_band, inpainting)
        checkpoint = _capture(done + 1, latent, scheduler, generator, reference)
        count = rounds * plan.count_predictions(tiles)
        yield Step(done, total, count, plan.weigh(count, index, steps), checkpoint)
    return latent


def _predict(
    latent: Tensor,
    plan: DenoisePlan,
    tiles: Sequence[Rectangle],
    ensemble: Ensemble,
    scheduler: Scheduler,
    index: int,
    done: int,
    style: Style | None,
) -> Generator[TilePredicted | Warned, None, tuple[Tensor, list[tuple[Rectangle, Tensor]]]]:
    """The fused prediction of step `index`, and those of its tiles."""
    fusion, predictions = Fusion(plan.canvas, latent), list[tuple[Rectangle, Tensor]]()
    scaled, steps = scheduler.scale_input(latent, index), len(scheduler.timesteps)
    views = _look_around(scaled, plan, scheduler, index, steps, ensemble.masked, style)
    guided, timestep = plan.is_guided_at(index, steps), scheduler.timesteps[index]
    for tile, prediction in ensemble.predict(scaled, timestep, tiles, views, guided=guided):
        fusion.add(tile, prediction)
        predictions.append((tile, prediction))
        clean = scheduler.estimate_clean(plan.canvas.gather(latent, tile), prediction, index)
        yield TilePredicted(done, tile, clean)
    yield from ensemble.take_warnings()
    return fusion.mean(), predictions


def _find_reference(
    ensemble: Ensemble, low_band: LowBand | None, inpainting: Inpainting | None
) -> Tensor | None:
    """The picture that a stage goes by, which a checkpoint keeps."""
    if low_band is None and ensemble.enlarged is not None:
        return ensemble.enlarged
    guides = low_band or inpainting
    return guides and guides.reference


def _look_around(
    scaled: Tensor,
    plan: DenoisePlan,
    scheduler: Scheduler,
    index: int,
    steps: int,
    masked: Tensor | None,
    style: Style | None,
) -> Views | None:
    attention = plan.attention_at(index, steps)
    if attention is None:
        return None
    view = style and style.look(scheduler, index)
    return Views(scaled, plan.canvas, attention, partial(scheduler.match_noise, index), masked, view)


def _name_broken(predictions: list[tuple[Rectangle, Tensor]]) -> str:
    """Whose prediction holds NaN or infinity, in latent pixels. Asked only after the canvas has broken."""
    for number, (tile, prediction) in enumerate(predictions, start=1):
        if not prediction.isfinite().all():
            place = f"rows {tile.top} to {tile.top + tile.height}, columns {tile.left} to {tile.left + tile.width}"
            return f"tile {number} of {len(predictions)} ({place} of the latent) is not finite"
    return "all tiles are finite, the scheduler's step is not"


def _capture(
    step: int, latent: Tensor, scheduler: Scheduler, generator: torch.Generator, reference: Tensor | None
) -> Checkpoint:
    tensors, scalars = scheduler.capture()
    kept = {f"scheduler.{name}": tensor for name, tensor in tensors.items()}
    kept |= {"latent": latent, "generator": generator.get_state()}
    if reference is not None:
        kept["reference"] = reference
    return Checkpoint(step, kept, scalars)
