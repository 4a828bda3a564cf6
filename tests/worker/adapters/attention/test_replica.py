"""Tiles of every family that attend to the conductor and to their neighbourhoods."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.tiny_add_ons import tiny_ip_adapter, tiny_lora
from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.worker.adapters.families.transformers import CASES
from tests.worker.engine.test_regions import cover
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.acceleration import compile_blocks, find_denoiser
from worker.adapters.add_ons import IpAdapter, Lora
from worker.adapters.attention.layers import AttentionLayers
from worker.adapters.attention.replica import make_attentive
from worker.adapters.attention.rotary import find_rotary
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.families import flux, sana, stable_diffusion
from worker.adapters.family import Family
from worker.adapters.family_model import FamilyModel
from worker.adapters.graphs import replay_forward
from worker.adapters.model import Conditions, LoadedModel, Prompt
from worker.adapters.registry import load_model
from worker.adapters.settings import FolderSettings
from worker.engine.attention import AttentionPlan, Views
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step
from worker.engine.ensemble import Batch, Ensemble, Query, Replica
from worker.engine.generate import PreparedModel, generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.scheduler import Scheduler
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


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_lies_far_away_counts_and_without_attention_does_not(
    name: str, neighbours: bool, models: Callable[[str], LoadedModel]
) -> None:
    """In both directions."""
    model = models(name)
    prepared, plan, latent = (
        model.prepare(conditions(model)),
        plan_tiles(model, neighbours=neighbours),
        draw(model),
    )
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


class Concatenating:
    """diffusers' processor of self-attention written out, over a tile's own keys and those of an earlier forward."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.weight = 0.0

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **options: object) -> Tensor:
        query, keys, values = (
            each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q, attn.to_k, attn.to_v)
        )
        bias = torch.zeros(keys.shape[2])
        if not self.weight:
            self.kept = keys, values
        else:
            assert self.kept is not None
            others = self.kept[0].shape[2]
            bias = torch.cat([bias, torch.full((others,), self.weight * bias.numel() / others).log()])
            keys, values = (
                torch.cat([own, kept.expand(len(own), -1, -1, -1)], dim=2)
                for own, kept in zip((keys, values), self.kept, strict=True)
            )
        logits = query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        attended = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
        return attn.to_out[0](attended) / attn.rescale_output_factor


def test_a_unet_attends_as_if_the_conductors_keys_stood_behind_its_own(
    models: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    model, latent = models("stable-diffusion"), draw(models("stable-diffusion"))
    told = Conditions("brick wall", guidance_scale=1.0, attention="conductor")
    prepared, plan = model.prepare(told), plan_tiles(model, strength=0.3)
    found = begin(prepared, plan)(latent)

    pipe = tiny_stable_diffusion(tmp_path / "tiny")
    layers = [Concatenating() for name in pipe.unet.attn_processors if "attn1" in name]
    waiting = iter(layers)
    pipe.unet.set_attn_processor(
        {name: next(waiting) if "attn1" in name else own for name, own in pipe.unet.attn_processors.items()}
    )
    states = pipe.encode_prompt("brick wall", "cpu", 1, False)[0]
    scheduler = prepared.make_scheduler(StagePlan(plan, 4))
    clock = scheduler.match_noise(1, (1 / 6) ** 0.5)  # 3 rows and 2 columns are one pixel of the conductor
    small = latent.unflatten(1, (16, 3)).unflatten(3, (8, 2)).mean((2, 4)) * clock.gain
    with torch.inference_mode():
        pipe.unet(small[None], clock.timestep, states)
        for layer in layers:
            layer.weight = 0.3
        tiles = torch.stack([tile.slice(latent) for tile in plan.grid_at(1, 4).tiles])
        expected = pipe.unet(tiles, scheduler.timesteps[1], states.expand(len(tiles), -1, -1)).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class ConcatenatingLinear:
    """Sana's linear attention written out (Xie et al. 2024, eq. 2), over the same two sets."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.weight = 0.0

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **options: object) -> Tensor:
        query, keys, values = (
            each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q, attn.to_k, attn.to_v)
        )
        weights = torch.ones(keys.shape[2])
        if not self.weight:
            self.kept = keys, values
        else:
            assert self.kept is not None
            others = self.kept[0].shape[2]
            weights = torch.cat([weights, torch.full((others,), self.weight * weights.numel() / others)])
            keys, values = (
                torch.cat([own, kept.expand(len(own), -1, -1, -1)], dim=2)
                for own, kept in zip((keys, values), self.kept, strict=True)
            )
        alike = query.relu() @ keys.relu().transpose(-1, -2) * weights
        attended = alike @ values / (alike.sum(-1, keepdim=True) + 1e-15)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def test_linear_attention_attends_as_if_the_conductors_keys_stood_behind_its_own(
    models: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    model = models("sana")
    prepared, plan, latent = (
        model.prepare(conditions(model, guidance_scale=1.0)),
        plan_tiles(model, strength=0.3),
        draw(model),
    )
    found = begin(prepared, plan)(latent)
    family = sana.load(_save(tmp_path, "sana"), torch.device("cpu"))
    layers = [ConcatenatingLinear() for _ in family.pipe.transformer.transformer_blocks]
    for block, layer in zip(family.pipe.transformer.transformer_blocks, layers, strict=True):
        block.attn1.processor = layer
    stage = StagePlan(plan, 4)
    replica, scheduler = (
        family.encode(Conditions("brick wall", guidance_scale=1.0))(stage),
        prepared.make_scheduler(stage),
    )
    small = Views(latent, TALL, _attention(plan), partial(scheduler.match_noise, 1)).of([]).conductor
    with torch.inference_mode():
        replica.predict(Batch(small.crop[None], small.timestep[None], (Query(small.area),)))
        for layer in layers:
            layer.weight = 0.3
        expected = start(replica, scheduler, stage, attends=False)(latent)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _save(folder: Path, name: str) -> Path:
    BUILDERS[name](folder / name)
    return folder / name


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


# Over the middle of all three tiles: each is predicted under both prompts.
REGION = cover(TALL, 12, 36, soft=4)


# The tiny Z-Image has one layer with text, whose keys of the image are made before they have met it.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "z-image"])
def test_tiles_under_the_prompt_of_a_region_see_the_canvas_under_that_of_the_request(
    name: str, models: Callable[[str], LoadedModel]
) -> None:
    """And what lies around them under their own: where a region covers all, the request's prompt counts so alone."""
    model, latent = models(name), draw(models(name))
    whole = cover(TALL, 0, TALL.height)
    told = conditions(model, regions=(Prompt("moss"),))
    others = [replace(told, prompt="a lake"), replace(told, regions=(Prompt("sand"),))]
    plan = replace(plan_tiles(model, neighbours=True), regions=whole)
    base, other, region = (begin(model.prepare(each), plan)(latent) for each in (told, *others))
    assert not torch.equal(base, other)
    assert (base - region).abs().max() > 1e-4
    plain, same, _ = (begin(model.prepare(each), plan, attends=False)(latent) for each in (told, *others))
    assert torch.equal(plain, same)
    # The same prompt for both is as if there were no region.
    alike = begin(model.prepare(replace(told, prompt="moss")), plan)(latent)
    alone = begin(model.prepare(replace(told, prompt="moss", regions=())), replace(plan, regions=None))(
        latent
    )
    torch.testing.assert_close(alike, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["local", "global"])
@pytest.mark.parametrize("name", ["stable-diffusion-xl", "flux-2-klein", "z-image"])
def test_a_query_of_a_region_does_not_depend_on_whom_it_shares_a_batch_with(
    name: str, positions: str, models: Callable[[str], LoadedModel]
) -> None:
    model = models(name)
    told = conditions(model, regions=(Prompt("desert dunes at sunset " * 4),))
    if positions not in model.card.positions:
        return
    prepared, latent = model.prepare(replace(told, positions=positions)), draw(model)
    plan = replace(plan_tiles(model, neighbours=True), regions=REGION)
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


LOADERS = [("stable-diffusion", stable_diffusion.load), ("flux-dev", flux.load)]
TOLD = Conditions("brick wall", guidance_scale=1.0, attention="conductor")


def attend_with(family: Family, layers: AttentionLayers) -> Callable[[StagePlan], Replica]:
    """As a loaded model does with layers of its own."""
    encoded, patch = family.encode(TOLD), family.shape.alignment_px // family.shape.scale
    rotary = find_rotary(find_denoiser(family.pipe), patch, "local")
    return lambda stage: make_attentive(stage, encoded, encoded, layers, patch, rotary)


@pytest.mark.parametrize(("name", "load"), LOADERS)
def test_compiled_blocks_attend_alike_and_are_compiled_once(
    name: str,
    load: Callable[[Path, torch.device], Family],
    models: Callable[[str], LoadedModel],
    tmp_path: Path,
) -> None:
    """For batches of any size."""
    model = models(name)
    prepared, plan, latent = model.prepare(TOLD), plan_tiles(model, neighbours=True), draw(model)
    family = load(_save(tmp_path, name), torch.device("cpu"))
    make_replica = attend_with(family, AttentionLayers(find_denoiser(family.pipe), compiled=True))
    torch.compiler.reset()
    compile_blocks(find_denoiser(family.pipe), backend="eager")
    counts: list[int] = []
    for modules in (3, 2):
        stage = StagePlan(plan, 4, modules=modules)
        scheduler = prepared.make_scheduler(stage)
        for attends in (True, False, True):  # each form of a block is told from the others
            found = start(make_replica(stage), scheduler, stage, attends=attends)(latent)
            expected = begin(prepared, plan, modules=modules, attends=attends)(latent)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1]


class Recorded:
    """What a GPU does: a recording is played back without any of our code, on the tensors that it was made with."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.count += 1
        output = call()
        traced = make_fx(lambda: call()[0])()
        return lambda: output[0].copy_(traced()), output


@pytest.mark.parametrize(("name", "load"), LOADERS)
def test_recorded_forwards_read_what_was_written_last(
    name: str,
    load: Callable[[Path, torch.device], Family],
    models: Callable[[str], LoadedModel],
    tmp_path: Path,
) -> None:
    """Of conductors of two sizes, in turns."""
    model, record = models(name), Recorded()
    plan = plan_tiles(model, neighbours=True)
    stages = [
        StagePlan(each, 4, modules=3)
        for each in (plan, replace(plan, attention=replace(_attention(plan), conductor=(24, 8))))
    ]
    prepared = model.prepare(TOLD)
    plain = [begin(prepared, stage.denoise, modules=3) for stage in stages]
    family = load(_save(tmp_path, name), torch.device("cpu"))
    layers = AttentionLayers(find_denoiser(family.pipe), recorded=True)
    make_replica = attend_with(family, layers)
    replay_forward(find_denoiser(family.pipe), record, layers.describe)
    replayed = [start(make_replica(stage), prepared.make_scheduler(stage), stage) for stage in stages]
    for seed in (1, 2):
        for one, two in zip(plain, replayed, strict=True):
            torch.testing.assert_close(two(draw(model, seed)), one(draw(model, seed)), rtol=1e-4, atol=1e-5)
        # What each conductor and a neighbourhood write, and what tiles beside each conductor read.
        assert record.count == 5


def _attention(plan: DenoisePlan) -> AttentionPlan:
    assert plan.attention is not None
    return plan.attention


@pytest.mark.parametrize("prompts", [(), (Prompt("moss"),)], ids=["alone", "region"])
@pytest.mark.parametrize("name", ["stable-diffusion", "flux-dev"])
def test_any_number_of_ranks_and_a_resumed_job_make_the_same_bytes(
    name: str, prompts: tuple[Prompt, ...], tmp_path: Path
) -> None:
    """Each rank has a model of its own, as each process has."""
    BUILDERS[name](tmp_path / name)
    alone = load_model(str(tmp_path / name), "cpu")
    plan = replace(plan_tiles(alone, neighbours=True), moving=True, regions=REGION if prompts else None)
    picture = GenerationPlan(
        3, alone.card.latent_channels, (StagePlan(plan, 2, modules=1),), DecodePlan(tile_size=16)
    )

    def make(
        model: LoadedModel, group: Group | None = None, resume: Checkpoint | None = None
    ) -> tuple[list[Checkpoint], Tensor]:
        events = list(generate(picture, model.prepare(conditions(model, regions=prompts)), resume, group))
        kept = [event.checkpoint for event in events if isinstance(event, Step)]
        return kept, torch.cat([event.rows for event in events if isinstance(event, Band)])

    kept, rows = make(alone)
    assert torch.equal(make(alone, resume=kept[0])[1], rows)
    loaded = [load_model(str(tmp_path / name), "cpu") for _ in range(4)]
    for ranks in (2, 4):
        with ThreadPoolExecutor(ranks) as pool:
            made = pool.map(make, loaded[:ranks], thread_groups(ranks))
            assert all(torch.equal(each, rows) for _, each in made)


def test_layers_that_wait_in_main_memory_do_not_attend(tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    family = stable_diffusion.load(tmp_path / "tiny", torch.device("cpu"))
    model = FamilyModel(family, FolderSettings(offload="model"), "tiny")
    assert model.card.attention == ["off"]
    with pytest.raises(
        UnsupportedConditionError, match=r"advanced.attention: 'conductor' .* allowed: auto, off"
    ):
        model.prepare(Conditions("", attention="conductor"))


def test_layers_that_do_not_call_pytorchs_attention_are_refused(tmp_path: Path) -> None:
    """As another backend of diffusers' would be: here, diffusers' attention without a fused kernel."""
    family = stable_diffusion.load(_save(tmp_path, "stable-diffusion"), torch.device("cpu"))
    family.pipe.unet.set_attn_processor(AttnProcessor())
    model = FamilyModel(family, FolderSettings(), "tiny")
    with pytest.raises(
        UnsupportedConditionError, match=r"advanced.attention: 4 of 4 attention .* allowed: off"
    ):
        begin(model.prepare(conditions(model)), plan_tiles(model))(draw(model))
