"""A replica that knows the clean canvas and says whatever its scheduler asks for, and a singer around any replica."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.decoder import Decoder, Local
from worker.engine.encoder import Encoder
from worker.engine.ensemble import Ensemble, Replica
from worker.engine.grid import Tile
from worker.engine.plan import StagePlan
from worker.engine.schedule import Scheduler


@dataclass
class KnownAnswer:
    answer: Tensor
    scheduler: object

    branches = 1

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]

    def predict(
        self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
    ) -> Tensor:
        clean = torch.stack([tile.crop(self.answer) for tile in tiles])
        config = self.scheduler.config
        kind = getattr(config, "prediction_type", "epsilon")
        if "FlowMatch" in type(self.scheduler).__name__ or kind == "flow_prediction":
            return (crops - clean) / (timestep / 1000)
        if kind == "v_prediction":
            alpha, sigma = self._level(timestep)
            return (alpha * crops - clean) / sigma
        alpha, sigma = self._level(timestep)
        return (crops - alpha * clean) / sigma

    def _level(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise of what the model is shown, α² + σ² = 1, interpolated between timesteps."""
        table = self.scheduler.alphas_cumprod.double()
        below = timestep.long().clamp(0, len(table) - 1)
        squared = table[below]
        return squared.sqrt().float(), (1 - squared).sqrt().float()


@dataclass
class Soloist:
    """One replica with one scheduler, whatever the stage asks for."""

    replica: Replica
    scheduler: Scheduler
    decoder: Decoder
    encoder: Encoder | None = None
    device = torch.device("cpu")

    def begin(self, stage: StagePlan) -> tuple[Ensemble, Scheduler]:
        return Ensemble(self.replica, stage.modules), self.scheduler


def plain_decoder() -> Decoder:
    """The first channel as grey, unscaled."""
    return Decoder((Local(lambda latent: latent[:, :1].expand(-1, 3, -1, -1)),), (3,))
