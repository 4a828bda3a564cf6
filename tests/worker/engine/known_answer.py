"""A replica that knows the clean canvas and says whatever its scheduler asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.decoder import Decoder, Local
from worker.engine.grid import Tile


@dataclass
class KnownAnswer:
    answer: Tensor
    scheduler: object

    def predict(self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile]) -> Tensor:
        clean = torch.stack([tile.crop(self.answer) for tile in tiles])
        config = self.scheduler.config
        if "FlowMatch" in type(self.scheduler).__name__:
            return (crops - clean) / (timestep / 1000)
        if getattr(config, "prediction_type", "epsilon") == "v_prediction":
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


def plain_decoder() -> Decoder:
    """The first channel as grey, unscaled."""
    return Decoder((Local(lambda latent: latent[:, :1].expand(-1, 3, -1, -1)),), (3,))
