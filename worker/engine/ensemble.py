"""All modules of one worker. Here tiles are shared out; nothing else knows how many there are."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.grid import Tile
from worker.engine.memory import is_out_of_memory, release_unused_memory
from worker.engine.ranks import Alone, Group
from worker.engine.warned import Warned


class Replica(Protocol):
    """The weights on one device, with the prompt already encoded."""

    @property
    def branches(self) -> int:
        """Predictions that a tile takes: 1, or 2 with guidance (without the prompt, with it)."""
        ...

    def predict(
        self, crops: Tensor, timestep: Tensor, tiles: Sequence[Tile], branches: Sequence[int]
    ) -> Tensor:
        """Predict (B, C, h, w) for crops of that shape, float32, each under its branch; `tiles` says where they lie."""
        ...

    def guide(self, predictions: Tensor) -> Tensor:
        """One prediction (C, h, w) out of all branches' (branches, C, h, w)."""
        ...


Query = tuple[Tile, int]


class Ensemble:
    """Modules that denoise tiles at the same time.

    What is shared out are single predictions: each branch of each tile, in batches of one size, the
    last filled up with copies of its last. One batch shape means one choice of kernels, hence the same
    bytes however many ranks share the batches. Where one does not fit into memory, all ranks halve theirs.

    Args:
        modules: tiles that one rank denoises at the same time, as one batch.
        even: make batches smaller where that fills them evenly and gives every rank as many: faster,
            but then their shape, and with it the last bit of a byte, follows the number of ranks.
    """

    def __init__(self, replica: Replica, modules: int, *, even: bool = False) -> None:
        self._replica = replica
        self._largest_batch = modules * replica.branches
        self._even = even
        self._group: Group = Alone()
        self._warnings: list[Warned] = []

    def join(self, group: Group) -> None:
        """Share the tiles out among these ranks."""
        self._group = group

    def take_warnings(self) -> list[Warned]:
        """What was made good since this was asked last."""
        taken, self._warnings = self._warnings, []
        return taken

    def predict(
        self, latent: Tensor, timestep: Tensor, tiles: Sequence[Tile]
    ) -> Iterator[tuple[Tile, Tensor]]:
        """Predict every tile's crop of the canvas (C, H, W).

        Yields:
            each tile in the order given, with its prediction (C, h, w), guidance applied.

        Raises:
            Exception: whatever the replica raises, except for want of memory while a batch can be halved.
        """
        branches = self._replica.branches
        results: list[Tensor] = []
        waiting = iter(tiles)
        for batch in self._predict_in_rounds(latent, timestep, tiles):
            results.extend(batch)
            while len(results) >= branches:
                yield next(waiting), self._replica.guide(torch.stack(results[:branches]))
                del results[:branches]

    def predict_every_size(self, latent: Tensor, timestep: Tensor, tile: Tile) -> None:
        """One batch of each size that `predict` may choose: a GPU chooses and records its kernels for each."""
        for size in range(self._largest_batch, 0, -1):
            self._predict_batch([(tile, 0)], size, latent, timestep)

    def _predict_in_rounds(self, latent: Tensor, timestep: Tensor, tiles: Sequence[Tile]) -> Iterator[Tensor]:
        """In each round every rank predicts one batch; every rank gets all of them, in order."""
        queries = [(tile, branch) for tile in tiles for branch in range(self._replica.branches)]
        group, first = self._group, 0
        while first < len(queries):
            size = self._choose_batch(len(queries))
            start = first + group.rank * size
            batch = (
                queries[start : start + size] or queries[-1:]
            )  # a rank without queries repeats the last, to keep the collectives in step
            own = self._try_batch(batch, size, latent, timestep)
            if not group.meet(fine=own is not None) or own is None:
                self._halve_batch(size)
                continue
            for rank, predictions in enumerate(group.gather(own)):
                yield predictions[: max(len(queries) - first - rank * size, 0)]
            first += size * group.size

    def _choose_batch(self, queries: int) -> int:
        """50 queries in batches of up to 16: four of 13 for one rank, two or four; eight of 7 for eight."""
        if not self._even:
            return self._largest_batch
        ranks = self._group.size
        rounds = ceil(queries / (self._largest_batch * ranks))
        return ceil(queries / (rounds * ranks))

    def _try_batch(
        self, batch: Sequence[Query], size: int, latent: Tensor, timestep: Tensor
    ) -> Tensor | None:
        """None for want of memory, which the host learns at once: nothing here waits for the device."""
        try:
            return self._predict_batch(batch, size, latent, timestep)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            return None

    def _halve_batch(self, size: int) -> None:
        release_unused_memory()
        self._largest_batch = max(size // 2, 1)
        message = f"no memory for batches of {size} predictions; going on with {self._largest_batch}"
        self._warnings.append(Warned("batch_halved", message))

    @torch.inference_mode()
    def _predict_batch(self, batch: Sequence[Query], size: int, latent: Tensor, timestep: Tensor) -> Tensor:
        padded = [*batch, *[batch[-1]] * (size - len(batch))]
        tiles, branches = zip(*padded, strict=True)
        crops = torch.stack([tile.crop(latent) for tile in tiles])
        return self._replica.predict(crops, timestep, tiles, branches)
