"""What many GPUs would make of a large cascade: an estimate, not a measurement.

    .venv/bin/python -m benchmarks.many_ranks                                  # 16384² on 1 to 64 ranks
    .venv/bin/python -m benchmarks.many_ranks --side 8192 --ranks 1 2 4        # beside what was measured

The plan is the service's and the worker's, and the worker's own `Ensemble` shares each step's tiles out; the
replica computes nothing, on tensors without contents. So batches, places left empty and bytes are as they would be.
Seconds follow from these counts and from figures of one, two and four H100 in RESULTS.md (`SDXL`, `FLUX` below).
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest
from api_schemas.layout import Cascade
from worker.engine.ensemble import Batch, Ensemble
from worker.engine.plan import StagePlan
from worker.planner import plan_generation

MODULES = 8  # as a worker on a GPU has them
# Of an 8192² SDXL-size cascade on one, two and four GPUs, fixed seconds and those that ranks divide; taken by area.
MEASURED_AREA = 8192**2
DECODE = 0.7, 8.6  # 9.3, 5.0 and 2.9 s
WAY_UP = 1.1, 8.4  # the last stage without its predictions: 9.5, 5.3 and 3.3 s
PNG = 4.2
GATHERED_PER_SECOND = 40e9  # bytes that reach a rank: a network of 400 Gbit/s for each GPU, not measured


@dataclass(frozen=True, slots=True)
class Model:
    """A card, and what was measured of its denoiser.

    Args:
        branches: of guidance.
        forward_s: seconds a prediction, in batches.
        least_s: seconds that any batch takes, bound by launches.
    """

    card: ModelCard
    branches: int
    forward_s: float
    least_s: float


def describe(name: str, channels: int, alignment_px: int, steps: int, strength: float) -> ModelCard:
    return ModelCard(
        name=name, family=name, native_size_px=1024, alignment_px=alignment_px, latent_channels=channels, vae_scale=8,
        default_steps=steps, default_guidance_scale=5.0, default_num_modules=MODULES, layout="cascade",
        cascade=Cascade(strength=strength),
    )  # fmt: skip


SDXL = Model(describe("SDXL-size", 4, 32, 30, 0.4), 2, forward_s=0.0149, least_s=0.050)
FLUX = Model(describe("FLUX-size", 16, 16, 28, 0.6), 1, forward_s=0.128, least_s=0.128)


@dataclass(slots=True)
class Counted:
    """One rank of many, all of which answer alike; its batches are counted.

    Attributes:
        sizes: of its batches.
        received: bytes from the others.
    """

    size: int
    rank: int = 0
    sizes: list[int] | None = None
    received: int = 0

    def barrier(self, *, ok: bool = True) -> bool:
        return ok

    def abort(self) -> None:
        return

    def all_gather(self, own: Tensor) -> list[Tensor]:
        self.sizes = [*(self.sizes or []), len(own)]
        self.received += (self.size - 1) * own.numel() * own.element_size()
        return [own] * self.size


@dataclass(frozen=True, slots=True)
class Idle:
    """Predicts what it was given."""

    branches: int

    def predict(self, batch: Batch) -> Tensor:
        return batch.crops

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[-1]


@dataclass(frozen=True, slots=True)
class StageCost:
    """A stage on some ranks.

    Args:
        queries: predictions that are needed.
        places: of predictions in all ranks' batches.
        seconds: that they take, with gathering; `way_up` what the stage takes beside.
        received: bytes a step and rank.
    """

    queries: int
    places: int
    seconds: float
    way_up: float
    received: float


def main() -> None:
    options = parse()
    for model in (SDXL, FLUX):
        print(f"\n{model.card.name}, {options.side}² cascade")
        print(
            "ranks  stages, s                      up     decode PNG    total  speed-up  empty: all, last  MiB a step"
        )
        alone = 0.0
        for ranks in options.ranks:
            stages = list(cost_stages(model, options.side, ranks))
            tail = (spread(DECODE, options.side**2, ranks), PNG * options.side**2 / MEASURED_AREA)
            total = sum(stage.seconds + stage.way_up for stage in stages) + sum(tail)
            alone = alone or total * ranks
            print_row(ranks, stages, tail, total, alone / total)


def cost_stages(model: Model, side_px: int, ranks: int) -> Iterator[StageCost]:
    request = ResolvedRequest(
        model=model.card.name, steps=model.card.default_steps, guidance_scale=5.0, seed=7, width_px=side_px,
        height_px=side_px, layout="cascade",
    )  # fmt: skip
    plan = plan_generation(request, model.card, 1 << 30, Path())
    for level, stage in enumerate(plan.stages):
        yield cost_stage(model, stage, ranks, first=level == 0)


def cost_stage(model: Model, stage: StagePlan, ranks: int, *, first: bool) -> StageCost:
    group, replica = Counted(ranks), Idle(model.branches)
    ensemble = Ensemble(replica, stage.canvas, stage.modules, group, even=stage.even)
    latent = torch.empty(model.card.latent_channels, *stage.canvas.size, device="meta")
    queries = 0
    for index in range(stage.steps):
        tiles = stage.denoise.tiles_at(index, stage.steps)
        queries += len(tiles) * model.branches
        for _ in ensemble.predict(latent, torch.empty((), device="meta"), tiles):
            pass
    sizes = group.sizes or []
    seconds = sum(max(size * model.forward_s, model.least_s) for size in sizes)
    area = (stage.canvas.height * stage.canvas.width) * model.card.vae_scale**2
    return StageCost(
        queries,
        sum(sizes) * ranks,
        seconds + group.received / GATHERED_PER_SECOND,
        0.0 if first else spread(WAY_UP, area, ranks),
        group.received / stage.steps,
    )


def spread(measured: tuple[float, float], area: int, ranks: int) -> float:
    """Seconds of fixed work, and of work that ranks divide, for that many pixels."""
    fixed, divided = measured
    return (fixed + divided / ranks) * area / MEASURED_AREA


def print_row(
    ranks: int, stages: list[StageCost], tail: tuple[float, float], total: float, speed_up: float
) -> None:
    last, up = stages[-1], sum(stage.way_up for stage in stages)
    empty = 1 - sum(stage.queries for stage in stages) / sum(stage.places for stage in stages)
    print(
        f"{ranks:5d}  {' + '.join(f'{stage.seconds:.1f}' for stage in stages):30s} {up:6.1f} "
        f"{tail[0]:6.1f} {tail[1]:6.1f} {total:7.1f}  {speed_up:4.1f} ({speed_up / ranks:3.0%})  "
        f"{empty:5.1%}, {1 - last.queries / last.places:5.1%}  {last.received / 2**20:.0f}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=16_384, help="of the picture, pixels")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    return parser.parse_args()


if __name__ == "__main__":
    main()
