"""A replica whose tiles attend to the conductor, and on request to their neighbourhoods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor

from worker.adapters.attention.layers import AttentionLayers
from worker.adapters.attention.orders import Reading, Slot
from worker.adapters.attention.rotary import Rotary
from worker.adapters.attention.style import Turn
from worker.engine.attention import Context, View
from worker.engine.canvas import Rectangle
from worker.engine.ensemble import Batch, Query, Replica
from worker.engine.plan import StagePlan

# What a style picture's keys count over as many of a tile's own; the authors of StyleAligned have 2 for a picture that is
# given. Of the bundled model's results, the distance to the style over that to the source is 0.87 on average at 1 and 0.82
# at 4, with edges the same; 8 gains no more.
_STYLE_WEIGHT = 4.0
MakeReplica = Callable[[StagePlan], Replica]


@dataclass(frozen=True, slots=True)
class AttentiveReplica:
    """Replicas of one network with the same prompts: for the tiles, for the conductor, and for neighbourhoods.

    Each sees a canvas of its own size, so that sizes that a model is told, and a ControlNet's image, are those of
    what it sees. A neighbourhood is seen under the prompt of its tile's query. The conductor shows the whole canvas,
    so it is seen under the request's own prompt, also by tiles under a region's, which holds for a part alone.

    Args:
        neighbourhood: on the canvas at half size.
        patch: latent pixels a side that are one token, where text stands beside them.
        rotary: how its queries are turned, if they are.
    """

    tiles: Replica
    conductor: Replica
    neighbourhood: Replica
    layers: AttentionLayers
    patch: int
    rotary: Rotary | None

    @property
    def branches(self) -> int:
        return self.tiles.branches

    def guide(self, predictions: Tensor) -> Tensor:
        return self.tiles.guide(predictions)

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Tensor:
        context = batch.context
        if context is None:
            return self.tiles.predict(batch)
        if self._goes_one_by_one and len(batch.queries) > 1:
            return torch.cat([self.predict(each) for each in batch.split()])
        if context.styled:
            return self._predict_styled(batch, context)
        self._show_conductor(context.conductor)
        queries, around = batch.queries, None
        conductor = self._read("conductor", batch, [context.conductor] * len(queries), batch.branches)
        if context.neighbourhoods:
            self._show_neighbourhoods(batch, context)
            around = self._read("neighbourhood", batch, context.neighbourhoods, range(len(queries)))
        tokens = self._count(batch.crops)
        return self.layers.read(tokens, conductor, around, lambda: self.tiles.predict(batch))

    def _predict_styled(self, batch: Batch, context: Context) -> Tensor:
        self._show_conductor(context.conductor, "style")
        # A tile's corners lie at the picture's: there is no other place in it that is the tile's.
        views = [replace(context.conductor, area=tile) for tile in batch.tiles]
        likeness = self.layers.place("likeness", torch.tensor(context.strength).to(batch.crops.device))
        style = replace(self._read("style", batch, views, batch.branches), likeness=likeness)
        own = self._place_own("style", batch.tiles, batch.crops.device)
        return self.layers.read_style(self._count(batch.crops), style, own, lambda: self.tiles.predict(batch))

    def _place_own(self, name: str, areas: Sequence[Rectangle], device: torch.device) -> Turn | None:
        if self.rotary is None:
            return None
        cosine, sine = self.rotary.place(areas, device)
        return self.layers.place(f"{name} own cosine", cosine), self.layers.place(f"{name} own sine", sine)

    @property
    def _goes_one_by_one(self) -> bool:
        """With positions on the canvas the tiles' replica predicts so itself."""
        return self.rotary is not None and self.rotary.positions == "global"

    def _show_conductor(self, view: View, slot: Slot = "conductor") -> None:
        """Each branch of guidance writes the keys that its own queries read, under whichever prompt.

        In a step without guidance, too: the pages keep their shape, and it is one prediction.
        """
        if self.layers.conductor is view:
            return
        self.layers.conductor = None
        branches, whole = self.branches, Rectangle(0, 0, *view.size)
        crops = view.crop.expand(branches, -1, -1, -1).contiguous()
        masked = None if view.masked is None else view.masked.expand(branches, -1, -1, -1)
        queries = tuple(Query(whole, branch) for branch in range(branches))
        batch = Batch(crops, view.timestep.expand(branches), queries, masked=masked)
        own = self._place_own("shown", [whole] * branches, crops.device) if slot == "style" else None
        self.layers.write(slot, crops, self._count(crops), lambda: self.conductor.predict(batch), own)
        self.layers.conductor = view

    def _show_neighbourhoods(self, batch: Batch, context: Context) -> None:
        views = context.neighbourhoods
        crops, timesteps = torch.stack([v.crop for v in views]), torch.stack([v.timestep for v in views])
        queries = tuple(
            replace(query, tile=_halve(view)) for query, view in zip(batch.queries, views, strict=True)
        )
        masked = [view.masked for view in views if view.masked is not None]
        seen = Batch(crops, timesteps, queries, masked=torch.stack(masked) if masked else None)
        self.layers.write(
            "neighbourhood", crops, self._count(crops), lambda: self.neighbourhood.predict(seen)
        )

    def _count(self, crops: Tensor) -> int:
        """Tokens of one crop."""
        return (crops.shape[-2] // self.patch) * (crops.shape[-1] // self.patch)

    def _read(self, slot: Slot, batch: Batch, views: Sequence[View], rows: Sequence[int]) -> Reading:
        context, place, device = batch.context, self.layers.place, batch.crops.device
        assert context is not None
        strength = torch.tensor(log(context.strength * (_STYLE_WEIGHT if slot == "style" else 1.0)))
        reading = Reading(
            place(f"{slot} rows", torch.tensor(rows).to(device)), place(slot, strength.to(device))
        )
        if self.rotary is None:
            return reading
        cosine, sine = self.rotary.turn(batch.tiles, context.canvas, views, device)
        return replace(reading, turn=(place(f"{slot} cosine", cosine), place(f"{slot} sine", sine)))


def _halve(view: View) -> Rectangle:
    """Where a neighbourhood lies on the canvas at half size."""
    height, width = view.size
    return Rectangle(
        view.area.top * height // view.area.height, view.area.left * width // view.area.width, height, width
    )


def make_attentive(
    stage: StagePlan,
    make_replica: MakeReplica,
    see: MakeReplica,
    layers: AttentionLayers,
    patch: int,
    rotary: Rotary | None,
) -> Replica:
    """The replica of a stage, attentive if the stage is planned so.

    Args:
        see: makes replicas for the conductor and for neighbourhoods.
    """
    plan = stage.denoise.attention
    if plan is None:
        return make_replica(stage)
    height, width = (max(side // 2, 1) for side in stage.canvas.size)
    conductor, neighbourhood = (see(_resize(stage, size)) for size in (plan.conductor, (height, width)))
    return AttentiveReplica(make_replica(stage), conductor, neighbourhood, layers, patch, rotary)


def _resize(stage: StagePlan, size: tuple[int, int]) -> StagePlan:
    """The stage's canvas at another size, where only views are predicted."""
    denoise = replace(stage.denoise, canvas=stage.canvas.resized(*size), attention=None, regions=None)
    return replace(stage, denoise=denoise)
