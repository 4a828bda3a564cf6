"""Shares the predictions that a step needs out, in batches, among the ranks of one worker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.attention import Context, Views
from worker.engine.canvas import Plane, Rectangle
from worker.engine.memory import is_out_of_memory, release_unused_memory
from worker.engine.ranks import Group, SingleRank
from worker.engine.regions import Regions
from worker.engine.warned import Warned


@dataclass(frozen=True, slots=True)
class Query:
    """One prediction that a step needs: of a tile, under one branch of guidance and one prompt.

    Args:
        prompt: 0 is the request's own; the regions' follow, as `Regions` numbers them.
    """

    tile: Rectangle
    branch: int = 0
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Queries that a replica answers at the same time.

    Args:
        crops: what the model sees of the canvas in each query's tile, (B, C, h, w), float32.
        timesteps: the model's clock for each, (B,).
        context: what they may attend to beside their own crop.
        enlarged: what of the stage before lies in each query's tile, (B, C, h, w), where the model is to see it.
        masked: what is made of each query's tile, and what of it stays, (B, 1 + C, h, w), where the model is to see it.
    """

    crops: Tensor
    timesteps: Tensor
    queries: tuple[Query, ...]
    context: Context | None = None
    enlarged: Tensor | None = None
    masked: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """All channels that the model is given, (B, C, 2 C or 1 + 2 C, h, w)."""
        seen = [each for each in (self.enlarged, self.masked) if each is not None]
        return torch.cat([self.crops, *seen], dim=1) if seen else self.crops

    def split(self) -> Iterator["Batch"]:
        """Each query as a batch of its own."""
        for place, query in enumerate(self.queries):
            own = slice(place, place + 1)
            enlarged, masked = (None if each is None else each[own] for each in (self.enlarged, self.masked))
            context = self.context and self.context.only(place)
            yield Batch(self.crops[own], self.timesteps[own], (query,), context, enlarged, masked)

    @property
    def tiles(self) -> list[Rectangle]:
        return [query.tile for query in self.queries]

    @property
    def branches(self) -> list[int]:
        return [query.branch for query in self.queries]


class Replica(Protocol):
    """The weights on one device, with the prompt already encoded: one class for each family, in adapters/families."""

    @property
    def branches(self) -> int:
        """Predictions that a guided tile takes: 1, or 2 (without the prompt, with it). One that is not takes the last."""
        ...

    def predict(self, batch: Batch) -> Tensor:
        """Predictions (B, C, h, w), float32; none depends on which others share its batch."""
        ...

    def guide(self, predictions: Tensor) -> Tensor:
        """One prediction (C, h, w) out of all branches' (branches, C, h, w), or the last one's alone (1, C, h, w)."""
        ...


class Ensemble:
    """Modules that denoise tiles at the same time.

    What is shared out are single predictions: each branch of each prompt of each tile, in batches of one size, the
    last of them filled up by repeating its last query. One batch shape means one choice of kernels, hence the same
    bytes however many ranks share the batches. Where one does not fit into memory, all ranks halve theirs.

    Args:
        canvas: that the tiles lie on.
        modules: tiles that one rank denoises at the same time, as one batch.
        group: the ranks that share the tiles out.
        even: make batches smaller where that fills them evenly and gives every rank as many, those of later rounds
            by one if need be: faster, but then their shape, and with it the last bit of a byte, follows the number of ranks.
        at_most: predictions in a batch, where an earlier stage found out that more do not fit.
        enlarged: what the stage before has made, (C, H, W), where the model is to see it.
        masked: what is made, and what stays, (1 + C, H, W), where the model is to see it.
        regions: of the canvas, with prompts of their own.
    """

    def __init__(
        self,
        replica: Replica,
        canvas: Plane,
        modules: int,
        group: Group | None = None,
        *,
        even: bool = False,
        at_most: int | None = None,
        enlarged: Tensor | None = None,
        masked: Tensor | None = None,
        regions: Regions | None = None,
    ) -> None:
        self._replica, self._canvas, self._group, self._even = replica, canvas, group or SingleRank(), even
        self.at_most, self.enlarged, self.masked, self._regions = at_most, enlarged, masked, regions
        self._modules, self._wanted = modules, modules * replica.branches
        self._warnings: list[Warned] = []

    @property
    def _largest_batch(self) -> int:
        return min(self._wanted, self.at_most or self._wanted)

    def take_warnings(self) -> list[Warned]:
        """The warnings since the last call."""
        taken, self._warnings = self._warnings, []
        return taken

    def predict(
        self,
        latent: Tensor,
        timestep: Tensor,
        tiles: Sequence[Rectangle],
        views: Views | None = None,
        *,
        guided: bool = True,
    ) -> Iterator[tuple[Rectangle, Tensor]]:
        """Predict every tile's crop of the canvas (C, H, W) at a timestep ().

        Args:
            views: what they attend to beside it.
            guided: whether all branches are predicted, or the prompt's alone.

        Yields:
            each tile in the order given, with its prediction (C, h, w), guidance applied and prompts blended.

        Raises:
            Exception: whatever the replica raises, except for want of memory while a batch can be halved.
        """
        regions = self._regions
        prompts = [(0,) if regions is None else tuple(regions.find_prompts(tile)) for tile in tiles]
        state = _State(latent, timestep, views)
        one_by_one = self._predict_branches(state, list(zip(tiles, prompts, strict=True)), guided=guided)
        for tile, own in zip(tiles, prompts, strict=True):
            predictions = [next(one_by_one) for _ in own]
            yield tile, predictions[0] if regions is None else regions.blend(tile, own, predictions)

    def _predict_branches(
        self, state: "_State", asked: Sequence[tuple[Rectangle, Sequence[int]]], *, guided: bool
    ) -> Iterator[Tensor]:
        """One prediction out of the branches of each tile, under each of its prompts in turn."""
        branches = range(self._replica.branches)[0 if guided else -1 :]
        count = len(branches)
        queries = [
            Query(tile, branch, prompt)
            for tile, prompts in asked
            for prompt in prompts
            for branch in branches
        ]
        results: list[Tensor] = []
        for predictions in self._predict_in_rounds(state, queries, self._modules * count):
            results.extend(predictions)
            while len(results) >= count:
                yield self._replica.guide(torch.stack(results[:count]))
                del results[:count]

    def predict_every_size(self, latent: Tensor, timestep: Tensor, tile: Rectangle) -> None:
        """One batch of each size that `predict` may choose: a GPU chooses and records its kernels for each."""
        for size in range(self._largest_batch, 0, -1):
            self._predict_batch([Query(tile)], size, _State(latent, timestep, None))

    def _predict_in_rounds(self, state: "_State", queries: Sequence[Query], wanted: int) -> Iterator[Tensor]:
        """In each round every rank predicts one batch; every rank gets all of them, in order.

        Args:
            wanted: predictions of as many tiles as there are modules.
        """
        group, first = self._group, 0
        while first < len(queries):
            size = self._choose_size(len(queries) - first, wanted)
            start = first + group.rank * size
            # A rank without queries repeats the last, to keep the collectives in step.
            batch = queries[start : start + size] or queries[-1:]
            own = self._try_batch(batch, size, state)
            if not group.barrier(ok=own is not None) or own is None:
                self._halve_batch(size)
                continue
            for rank, predictions in enumerate(group.all_gather(own)):
                yield predictions[: max(len(queries) - first - rank * size, 0)]
            first += size * group.size

    def _choose_size(self, queries: int, wanted: int) -> int:
        """Of the next round, of so many queries that are left: 50 in batches of up to 16 are 13, 13, 12 and 12 for one
        rank; each of two has 13 and 12; each of eight 7."""
        if not self._even:
            return min(wanted, self._largest_batch)
        ranks = self._group.size
        rounds = ceil(queries / (self._largest_batch * ranks))
        return ceil(queries / (rounds * ranks))

    def _try_batch(self, queries: Sequence[Query], size: int, state: "_State") -> Tensor | None:
        """None for want of memory, which the host learns at once: nothing here waits for the device."""
        try:
            return self._predict_batch(queries, size, state)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            return None

    def _halve_batch(self, size: int) -> None:
        release_unused_memory()
        self.at_most = max(size // 2, 1)
        message = f"no memory for batches of {size} predictions; going on with {self.at_most}"
        self._warnings.append(Warned("batch_halved", message))

    @torch.inference_mode()
    def _predict_batch(self, queries: Sequence[Query], size: int, state: "_State") -> Tensor:
        padded = (*queries, *[queries[-1]] * (size - len(queries)))
        crops = self._gather(state.latent, padded)
        enlarged, masked = (
            None if each is None else self._gather(each, padded) for each in (self.enlarged, self.masked)
        )
        context = state.views and state.views.of([query.tile for query in padded])
        return self._replica.predict(
            Batch(crops, state.timestep.expand(size), padded, context, enlarged, masked)
        )

    def _gather(self, state: Tensor, queries: Sequence[Query]) -> Tensor:
        return torch.stack([self._canvas.gather(state, query.tile) for query in queries])


@dataclass(frozen=True, slots=True)
class _State:
    """Of one step: the canvas (C, H, W) as the model sees it, its clock (), and what tiles attend to beside it."""

    latent: Tensor
    timestep: Tensor
    views: Views | None
