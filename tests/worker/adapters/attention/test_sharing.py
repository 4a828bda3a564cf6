"""Whom a query shares a batch, a rank or a model with does not count."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_add_ons import tiny_ip_adapter, tiny_lora
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.adapters.attention.tiled import (
    BUILDERS,
    NAMES,
    TALL,
    Predict,
    begin,
    conditions,
    draw,
    plan_tiles,
)
from tests.worker.engine.test_regions import cover
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.add_ons import IpAdapter, Lora
from worker.adapters.model import LoadedModel, Prompt
from worker.adapters.registry import load_model
from worker.engine.denoise import Checkpoint, Step
from worker.engine.generate import generate
from worker.engine.plan import DecodePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.stitch import Band

PLACED = [
    ("stable-diffusion-xl", "local"),
    ("z-image", "local"),
    ("flux-2-klein", "local"),
    ("flux-2-klein", "global"),
]


@pytest.mark.parametrize(("name", "positions"), PLACED)
def test_a_query_does_not_depend_on_whom_it_shares_a_batch_with(
    name: str, positions: str, models: Callable[[str], LoadedModel]
) -> None:
    model = models(name)
    prepared, latent = model.prepare(conditions(model, positions=positions)), draw(model)
    plan = plan_tiles(model, neighbours=True)
    one, three = (begin(prepared, plan, modules=modules)(latent) for modules in (1, 3))
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-4)


# Over the middle of all three tiles: each is predicted under both prompts.
REGION = cover(TALL, 12, 36, soft=4)


# The tiny Z-Image has one layer with text, whose keys of the image are made before they have met it. The distilled ones
# are the same pipelines, which are told of no guidance.
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("z-image", "flux-schnell", "flux-2-klein-few")]
)
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


@pytest.mark.parametrize(("name", "positions"), PLACED)
def test_a_query_of_a_region_does_not_depend_on_whom_it_shares_a_batch_with(
    name: str, positions: str, models: Callable[[str], LoadedModel]
) -> None:
    model = models(name)
    told = conditions(model, regions=(Prompt("desert dunes at sunset " * 4),))
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
