"""Tiles of every family that attend to the conductor and to their neighbourhoods."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from tests.tiny_add_ons import tiny_ip_adapter, tiny_lora
from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.worker.adapters.families.transformers import CASES
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.acceleration import compile_blocks
from worker.adapters.add_ons import IpAdapter, Lora
from worker.adapters.attention.layers import AttentionLayers
from worker.adapters.attention.replica import make_attentive
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.family_model import FamilyModel
from worker.adapters.families.stable_diffusion import load
from worker.adapters.graphs import replay_forward
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.adapters.settings import FolderSettings
from worker.engine.attention import AttentionPlan, Views
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Checkpoint, Step
from worker.engine.ensemble import Ensemble
from worker.engine.generate import PreparedModel, generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.stitch import Band

BUILDERS: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "stable-diffusion": tiny_stable_diffusion,
    "stable-diffusion-2.1": lambda folder: tiny_stable_diffusion(folder, predicts="v_prediction"),
    "stable-diffusion-xl": tiny_stable_diffusion_xl,
    **{case.name: case.build for case in CASES},
}
NAMES = list(BUILDERS)
TALL = Plane(48, 16)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Each is built and loaded once."""
    root, loaded = tmp_path_factory.mktemp("models"), dict[str, LoadedModel]()

    def find(name: str) -> LoadedModel:
        if name not in loaded:
            BUILDERS[name](root / name)
            loaded[name] = load_model(str(root / name), "cpu")
        return loaded[name]

    return find


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], LoadedModel]:
    """One that a test may spoil."""

    def build(name: str) -> LoadedModel:
        if not (tmp_path / name).exists():
            BUILDERS[name](tmp_path / name)
        return load_model(str(tmp_path / name), "cpu")

    return build


def conditions(model: LoadedModel, **changes: Any) -> Conditions:
    scale = 5.0 if model.card.guidance else 1.0
    return replace(Conditions("brick wall", guidance_scale=scale, attention="conductor"), **changes)


def plan_tiles(model: LoadedModel, *, neighbours: bool = False, strength: float = 0.5) -> DenoisePlan:
    unit = model.card.alignment_px // model.card.vae_scale
    attention = AttentionPlan((16, 8), strength, neighbours=neighbours, unit=unit)
    return DenoisePlan(TALL, 16, 0, 0, moving=False, seed=3, attention=attention)


Predict = Callable[[Tensor], Tensor]


def begin(
    prepared: PreparedModel, plan: DenoisePlan, *, modules: int = 2, attends: bool = True
) -> Predict:
    """Predictions of all tiles at the second of four steps, (tiles, C, h, w)."""
    stage = StagePlan(plan, 4, modules=modules)
    replica, scheduler = prepared.make_replica(stage), prepared.make_scheduler(stage)
    ensemble, attention = Ensemble(replica, TALL, modules), plan.attention
    assert attention is not None

    def predict(latent: Tensor) -> Tensor:
        views = Views(latent, TALL, attention, partial(scheduler.match_noise, 1)) if attends else None
        predicted = ensemble.predict(latent, scheduler.timesteps[1], plan.grid_at(1, 4).tiles, views)
        return torch.stack([prediction for _, prediction in predicted])

    return predict


def draw(model: LoadedModel, seed: int = 0) -> Tensor:
    return torch.randn(
        model.card.latent_channels, *TALL.size, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_lies_far_away_counts_and_without_attention_does_not(
    name: str, neighbours: bool, models: Callable[[str], LoadedModel]
) -> None:
    """In both directions."""
    model = models(name)
    prepared, plan, latent = model.prepare(conditions(model)), plan_tiles(model, neighbours=neighbours), draw(model)
    below, above = latent.clone(), latent.clone()
    below[:, -8:] += 1
    above[:, :8] += 1
    attentive, off = begin(prepared, plan), begin(prepared, plan, attends=False)
    base, plain = attentive(latent), off(latent)
    assert (base[0] - attentive(below)[0]).abs().max() > 1e-5
    assert (base[-1] - attentive(above)[-1]).abs().max() > 1e-5
    assert torch.equal(plain[0], off(below)[0])
    assert torch.equal(plain[-1], off(above)[-1])
    never = begin(model.prepare(conditions(model, attention="off")), plan, attends=False)
    assert torch.equal(never(latent), plain)
    assert torch.equal(attentive(latent), base)


@pytest.mark.parametrize("name", NAMES)
def test_a_weak_conductor_changes_little_and_a_strong_one_more(
    name: str, models: Callable[[str], LoadedModel]
) -> None:
    model = models(name)
    prepared, latent = model.prepare(conditions(model)), draw(model)
    off = begin(prepared, plan_tiles(model), attends=False)(latent)
    changes = [
        float((begin(prepared, plan_tiles(model, strength=strength))(latent) - off).abs().mean())
        for strength in (1e-6, 0.25, 1.0)
    ]
    assert changes[0] < 1e-5 < changes[1] < changes[2]


@pytest.mark.parametrize("positions", ["local", "global"])
@pytest.mark.parametrize("name", ["stable-diffusion-xl", "flux-2-klein", "z-image"])
def test_a_query_does_not_depend_on_whom_it_shares_a_batch_with(
    name: str, positions: str, models: Callable[[str], LoadedModel]
) -> None:
    model = models(name)
    if positions not in model.card.positions:
        return
    prepared, latent = model.prepare(conditions(model, positions=positions)), draw(model)
    plan = plan_tiles(model, neighbours=True)
    one, three = (begin(prepared, plan, modules=modules)(latent) for modules in (1, 3))
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-4)


def test_pictures_that_take_turns_do_not_see_each_others_conductors(
    fresh: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    """With LoRAs and IP-Adapters, whose loaders exchange layers and processors."""
    model = fresh("stable-diffusion")
    lora = Lora(tiny_lora(tmp_path, tiny_stable_diffusion(tmp_path / "one"), seed=1), 1.0)
    folder = tiny_ip_adapter(tmp_path / "adapter", tiny_stable_diffusion(tmp_path / "two"))
    picture = torch.randint(256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    kinds: list[dict[str, Any]] = [
        {}, {"attention": "off"}, {"loras": (lora,)}, {"ip_adapter": IpAdapter(folder, picture, 0.7)},
        {"loras": (lora,), "attention": "off"}, {"ip_adapter": IpAdapter(folder, picture, 0.7), "attention": "off"},
    ]  # fmt: skip
    plan, latents = plan_tiles(model, neighbours=True), [draw(model, seed) for seed in range(2)]

    def start(kind: dict[str, Any]) -> Predict:
        attends = kind.get("attention") != "off"
        return begin(model.prepare(conditions(model, **kind)), plan, attends=attends)

    alone = [[predict(latent) for latent in latents] for predict in map(start, kinds)]
    together = [start(kind) for kind in kinds]
    for seed, latent in enumerate(latents):
        for found, predict in zip(alone, together, strict=True):
            assert torch.equal(predict(latent), found[seed])
    for index, one in enumerate(alone):
        assert all((one[0] - other[0]).abs().max() > 1e-4 for other in alone[:index])


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "flux-dev", "qwen-image", "z-image"])
def test_compiled_blocks_attend_alike_and_are_compiled_once(
    name: str, fresh: Callable[[str], LoadedModel]
) -> None:
    model = fresh(name)
    prepared, plan, latent = model.prepare(conditions(model)), plan_tiles(model, neighbours=True), draw(model)
    plain = [begin(prepared, plan, modules=modules)(latent) for modules in (3, 2)]
    off = begin(prepared, plan, attends=False)(latent)
    torch.compiler.reset()
    compile_blocks(_network(prepared), backend="eager")
    counts: list[int] = []
    for modules, expected in zip((3, 2), plain, strict=True):
        found = begin(prepared, plan, modules=modules)(latent)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1]
    torch.testing.assert_close(begin(prepared, plan, attends=False)(latent), off, rtol=1e-4, atol=1e-5)


def _network(prepared: PreparedModel) -> torch.nn.Module:
    pipe = prepared.family.pipe
    return pipe.components.get("unet") or pipe.components["transformer"]


class Recorded:
    """What a GPU does: a recording is played back without any of our code, on the tensors that it was made with."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Through `torch.fx`, which writes down the operations alone."""
        self.count += 1
        output = call()
        traced = torch.fx.experimental.proxy_tensor.make_fx(lambda: call()[0], _allow_fake_constant=True)()
        return lambda: output[0].copy_(traced()), output


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "flux-2-klein"])
def test_recorded_forwards_read_what_was_written_last(
    name: str, fresh: Callable[[str], LoadedModel]
) -> None:
    model, other = fresh(name), fresh(name)
    plans = [plan_tiles(model, neighbours=neighbours) for neighbours in (False, True)]
    plans.append(replace(plans[0], attention=AttentionPlan((24, 8), 0.9)))
    plain = [begin(model.prepare(conditions(model)), plan) for plan in plans]
    prepared, record = other.prepare(conditions(other)), Recorded()
    layers = other._attention
    layers._recorded = True
    replay_forward(_network(prepared), record, layers.describe)
    replayed = [begin(prepared, plan) for plan in plans]
    off = begin(prepared, plans[0], attends=False)
    latents = [draw(model, seed) for seed in range(3)]
    for latent in latents:
        for one, two in zip(plain, replayed, strict=True):
            torch.testing.assert_close(two(latent), one(latent), rtol=1e-4, atol=1e-5)
    count = record.count
    for latent in latents:
        for one, two in zip(plain, replayed, strict=True):
            torch.testing.assert_close(two(latent), one(latent), rtol=1e-4, atol=1e-5)
    assert record.count == count
    torch.testing.assert_close(off(latents[0]), begin(model.prepare(conditions(model, attention="off")), plans[0], attends=False)(latents[0]), rtol=1e-4, atol=1e-5)
