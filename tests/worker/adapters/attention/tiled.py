"""A canvas of three tiles that attend, under any family's tiny model."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.worker.adapters.families.transformers import CASES
from worker.adapters.model import Conditions, LoadedModel
from worker.engine.attention import AttentionPlan, Views
from worker.engine.canvas import Plane
from worker.engine.ensemble import Ensemble, Replica
from worker.engine.generate import PreparedModel
from worker.engine.plan import DenoisePlan, StagePlan
from worker.engine.scheduler import Scheduler

BUILDERS: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "stable-diffusion": tiny_stable_diffusion,
    "stable-diffusion-2.1": lambda folder: tiny_stable_diffusion(folder, predicts="v_prediction"),
    "stable-diffusion-xl": tiny_stable_diffusion_xl,
    **{case.name: case.build for case in CASES},
}
NAMES = list(BUILDERS)
TALL = Plane(48, 16)


def conditions(model: LoadedModel, **changes: Any) -> Conditions:
    scale = 5.0 if model.card.guidance else 1.0
    return replace(Conditions("brick wall", guidance_scale=scale, attention="conductor"), **changes)


def plan_tiles(model: LoadedModel, *, neighbours: bool = False, strength: float = 0.5) -> DenoisePlan:
    unit = model.card.alignment_px // model.card.vae_scale
    attention = AttentionPlan((16, 8), strength, neighbours=neighbours, unit=unit)
    return DenoisePlan(TALL, 16, 0, 0, moving=False, seed=3, attention=attention)


Predict = Callable[[Tensor], Tensor]


def begin(prepared: PreparedModel, plan: DenoisePlan, *, modules: int = 2, attends: bool = True) -> Predict:
    """Predictions of all tiles at the second of four steps, (tiles, C, h, w)."""
    stage = StagePlan(plan, 4, modules=modules)
    replica, scheduler = prepared.make_replica(stage), prepared.make_scheduler(stage)
    return start(replica, scheduler, stage, attends=attends)


def start(replica: Replica, scheduler: Scheduler, stage: StagePlan, *, attends: bool = True) -> Predict:
    ensemble = Ensemble(replica, TALL, stage.modules, regions=stage.denoise.regions)
    attention = stage.denoise.attention
    assert attention is not None

    def predict(latent: Tensor) -> Tensor:
        views = Views(latent, TALL, attention, partial(scheduler.match_noise, 1)) if attends else None
        tiles = stage.denoise.grid_at(1, 4).tiles
        predicted = ensemble.predict(latent, scheduler.timesteps[1], tiles, views)
        return torch.stack([prediction for _, prediction in predicted])

    return predict


def draw(model: LoadedModel, seed: int = 0) -> Tensor:
    return torch.randn(model.card.latent_channels, *TALL.size, generator=torch.Generator().manual_seed(seed))


def save_tiny(folder: Path, name: str) -> Path:
    BUILDERS[name](folder / name)
    return folder / name


def find_attention(plan: DenoisePlan) -> AttentionPlan:
    assert plan.attention is not None
    return plan.attention
