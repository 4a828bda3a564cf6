"""A replica that knows the clean canvas and says whatever its scheduler asks for, and a prepared model around any replica."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from worker.adapters.schedulers import SchedulerUse, make_scheduler
from worker.engine.canvas import Plane, Rectangle
from worker.engine.ensemble import Batch, Ensemble, Query, Replica
from worker.engine.generate import PreparedModel
from worker.engine.plan import StagePlan
from worker.engine.ranks import Group
from worker.engine.scheduler import Scheduler
from worker.engine.vae.operations import Decoder, Encoder, Local

T = TypeVar("T")


@dataclass
class KnownAnswer:
    """`scheduler` is diffusers' own, asked for its configuration only."""

    answer: Tensor
    scheduler: object

    branches = 1

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]

    def predict(self, batch: Batch) -> Tensor:
        canvas, crops = Plane(*self.answer.shape[1:]), batch.crops
        clean = torch.stack([canvas.gather(self.answer, tile) for tile in batch.tiles])
        timestep = batch.timesteps[0]
        config, name = self.scheduler.config, type(self.scheduler).__name__
        if name.startswith("EDM"):
            return self._precondition(crops, clean, (4 * timestep).exp())
        if name == "IPNDMScheduler":
            angle = timestep * torch.pi / 2
            return (angle.cos() * crops - clean) / angle.sin()
        kind = getattr(config, "prediction_type", "epsilon")
        if "FlowMatch" in type(self.scheduler).__name__ or kind == "flow_prediction":
            return (crops - clean) / (timestep / 1000)
        if kind == "v_prediction":
            alpha, sigma = self._level(timestep)
            return (alpha * crops - clean) / sigma
        alpha, sigma = self._level(timestep)
        return (crops - alpha * clean) / sigma

    def _precondition(self, scaled: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """Karras et al. 2022, table 1: what F must say, shown c_in x, so that D is clean."""
        data = self.scheduler.config.sigma_data
        total = sigma**2 + data**2
        return (clean - data**2 / total * scaled * total.sqrt()) * total.sqrt() / (sigma * data)

    def _level(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise of what the model is shown, α² + σ² = 1, interpolated between timesteps."""
        table = self.scheduler.alphas_cumprod.double()
        below = timestep.long().clamp(0, len(table) - 1)
        squared = table[below]
        return squared.sqrt().float(), (1 - squared).sqrt().float()


@dataclass
class Untiled:
    """One replica; `schedule` makes a fresh scheduler of so many steps."""

    replica: Replica
    schedule: Callable[[int], Scheduler]
    decoder: Decoder
    encoder: Encoder | None = None
    device = torch.device("cpu")
    sees_masks = False

    def make_replica(self, stage: StagePlan) -> Replica:
        return self.replica

    def make_scheduler(self, stage: StagePlan) -> Scheduler:
        return self.schedule(stage.steps)


def begin(
    prepared: PreparedModel, stage: StagePlan, group: Group | None = None
) -> tuple[Ensemble, Scheduler]:
    """What the loop needs for one stage."""
    ensemble = Ensemble(prepared.make_replica(stage), stage.canvas, stage.modules, group)
    return ensemble, prepared.make_scheduler(stage)


def predict(
    replica: Replica, crops: Tensor, timestep: float, tiles: Sequence[Rectangle], branches: Sequence[int]
) -> Tensor:
    """Of each crop (B, C, h, w) at one timestep."""
    queries = tuple(Query(tile, branch) for tile, branch in zip(tiles, branches, strict=True))
    return replica.predict(Batch(crops, torch.tensor(timestep).expand(len(crops)), queries))


def maker(scheduler: SchedulerMixin) -> Callable[[int], Scheduler]:
    """Fresh ones after diffusers' own, used as Stable Diffusion's pipeline does."""
    flows = not hasattr(scheduler, "scale_model_input")
    return lambda steps: make_scheduler(
        scheduler, SchedulerUse(steps, scales=not flows, eta=True), torch.device("cpu")
    )


def finish(steps: Generator[object, None, T]) -> T:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def plain_decoder() -> Decoder:
    """The first channel as grey, unscaled."""
    return Decoder((Local(lambda latent: latent[:, :1].expand(-1, 3, -1, -1)),), (3,))
