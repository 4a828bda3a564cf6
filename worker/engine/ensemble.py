"""All modules of one worker. Here tiles are shared out; nothing else knows how many there are."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.grid import Tile


class Replica(Protocol):
    """The weights on one device, with the prompt already encoded."""

    def predict(self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile]) -> Tensor:
        """Predict (B, C, h, w) for crops of that shape, guidance applied; `tiles` says where they lie."""
        ...


class Ensemble:
    """Modules that denoise tiles at the same time.

    Each replica sings `modules_per_replica` tiles as one batch. The last batch is filled up with
    copies of its last tile: one batch shape means one choice of kernels, hence the same bytes
    however the tiles are shared out.
    """

    def __init__(self, replicas: Sequence[Replica], modules_per_replica: int) -> None:
        self._replicas = replicas
        self._batch_size = modules_per_replica

    def predict(
        self, latent: Tensor, timestep: Tensor, tiles: Sequence[Tile]
    ) -> Iterator[tuple[Tile, Tensor]]:
        """Predict every tile's crop of the canvas (C, H, W).

        Yields:
            each tile in the order given, with its prediction (C, h, w).
        """
        batches = [
            tiles[start : start + self._batch_size] for start in range(0, len(tiles), self._batch_size)
        ]
        if len(self._replicas) == 1:
            for batch in batches:
                yield from self._sing(self._replicas[0], batch, latent, timestep)
        else:
            yield from self._sing_together(batches, latent, timestep)

    def _sing_together(
        self, batches: Sequence[Sequence[Tile]], latent: Tensor, timestep: Tensor
    ) -> Iterator[tuple[Tile, Tensor]]:
        count = len(self._replicas)
        with ThreadPoolExecutor(count) as pool:
            for start in range(0, len(batches), count):
                futures = [
                    pool.submit(self._sing, replica, batch, latent, timestep)
                    for replica, batch in zip(self._replicas, batches[start : start + count], strict=False)
                ]
                for future in futures:
                    yield from future.result()

    @torch.inference_mode()
    def _sing(
        self, replica: Replica, batch: Sequence[Tile], latent: Tensor, timestep: Tensor
    ) -> list[tuple[Tile, Tensor]]:
        padded = [*batch, *[batch[-1]] * (self._batch_size - len(batch))]
        crops = torch.stack([tile.crop(latent) for tile in padded])
        return list(zip(batch, replica.predict(crops, timestep, padded), strict=False))
