"""Regions with every family: several prompts in one batch, each as if it were alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from tests.tiny_add_ons import tiny_control_net, tiny_ip_adapter, tiny_lora
from tests.worker.adapters.families import transformers, unets
from tests.worker.engine.test_regions import cover
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.add_ons import Control, IpAdapter, Lora
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.model import Conditions, LoadedModel, Prompt
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.ensemble import Batch, Query
from worker.engine.generate import FinalState, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.regions import Regions

# Longer than the families' own prompts: in tokens too, where texts have lengths of their own.
SHORT, LONG = "moss", "desert dunes at sunset " * 8


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    build: Callable[[Path], DiffusionPipeline]
    told: Conditions
    side: int


SUBJECTS = [
    *(Subject(case.name, case.build, Conditions("", *case.asked[-1]), 8) for case in unets.CASES),
    *(
        Subject(
            case.name, case.build, Conditions("", case.negative_prompt, case.guidance_scales[-1]), case.noise[1] // 2
        )
        for case in transformers.CASES
        # The distilled ones are the same pipelines, which are told of no guidance.
        if case.name not in ("flux-schnell", "flux-2-klein-few")
    ),
]  # fmt: skip
by_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)


@cache
def load(subject: Subject) -> LoadedModel:
    folder = Path(mkdtemp()) / subject.name
    subject.build(folder)
    return load_model(str(folder), "cpu")


def paint(model: LoadedModel, told: Conditions, side: int, regions: Regions | None, ranks: int = 1) -> Tensor:
    """The final latent, which all ranks must agree on."""
    canvas = Plane(2 * side, 2 * side + 4, (False, True))
    denoise = DenoisePlan(canvas, side, 0, 0, moving=True, seed=3, regions=regions)
    stage = StagePlan(denoise, 2, modules=2)
    plan = GenerationPlan(3, model.card.latent_channels, (stage,), DecodePlan(tile_size=8))
    prepared = model.prepare(told)

    def finish(group: Group) -> Tensor:
        events = list(generate(plan, prepared, group=group))
        return next(event.latent for event in events if isinstance(event, FinalState))

    with ThreadPoolExecutor(ranks) as pool:
        first, *others = pool.map(finish, thread_groups(ranks))
    assert all(torch.equal(first, other) for other in others)
    return first


def lay(side: int, top: int, bottom: int) -> Regions:
    return cover(Plane(2 * side, 2 * side + 4, (False, True)), top, bottom, soft=2)


@by_subject
def test_a_region_that_covers_all_equals_the_plain_prompt(subject: Subject) -> None:
    """Bit for bit: its negative prompt, and the length of its text, too, be it longer or shorter than the request's."""
    model, told = load(subject), subject.told
    plain = {each: paint(model, replace(told, prompt=each), subject.side, None) for each in (SHORT, LONG)}
    assert not torch.equal(plain[SHORT], plain[LONG])
    for prompt, own in ((SHORT, LONG), (LONG, SHORT)):
        asked = replace(told, prompt=prompt, regions=(Prompt(own, told.negative_prompt),))
        covered = paint(model, asked, subject.side, lay(subject.side, 0, 2 * subject.side))
        assert torch.equal(covered, plain[own])


@by_subject
def test_regions_do_not_depend_on_who_predicts_them(subject: Subject) -> None:
    model, regions = load(subject), lay(subject.side, 3, subject.side + 1)
    told = replace(subject.told, prompt=SHORT, regions=(Prompt(LONG, subject.told.negative_prompt),))
    alone = paint(model, told, subject.side, regions)
    assert torch.equal(alone, paint(model, told, subject.side, regions, ranks=2))
    assert not torch.equal(alone, paint(model, replace(told, regions=()), subject.side, None))


@by_subject
@torch.inference_mode()
def test_a_prompt_does_not_depend_on_whom_it_shares_a_batch_with(subject: Subject) -> None:
    """Though their texts differ in length. Alone means: as the only prompt of its request."""
    model, told = load(subject), subject.told
    plane = Plane(subject.side, subject.side)
    stage = StagePlan(DenoisePlan(plane, subject.side, 0, 0, moving=False, seed=9), 2)
    prompts = [Prompt(text, told.negative_prompt) for text in (SHORT, LONG, "")]
    asked = replace(told, prompt=prompts[0].text, regions=tuple(prompts[1:]))
    crop = initial_noise(1, model.card.latent_channels, *plane.size)[None]
    replica, order = model.prepare(asked).make_replica(stage), [1, 0, 2, 1]
    branch = replica.branches - 1

    def predict(own: object, numbers: list[int]) -> Tensor:
        queries = tuple(Query(plane.whole, branch, number) for number in numbers)
        batch = Batch(crop.expand(len(numbers), -1, -1, -1), torch.full((len(numbers),), 500.0), queries)
        return own.predict(batch)

    together = predict(replica, order)
    for row, number in enumerate(order):
        alone = model.prepare(replace(told, prompt=prompts[number].text)).make_replica(stage)
        torch.testing.assert_close(together[row], predict(alone, [0])[0], rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-4


@pytest.mark.parametrize("case", unets.ADD_ON_CASES, ids=lambda case: case.name)
def test_regions_keep_the_add_ons_of_the_picture(case: unets.UNetCase, tmp_path: Path) -> None:
    pipe = case.build(tmp_path / "tiny")
    model = load_model(str(tmp_path / "tiny"), "cpu")
    picture = torch.randint(256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    net, adapter = tiny_control_net(tmp_path / "net", pipe), tiny_ip_adapter(tmp_path / "adapter", pipe)
    bare = Conditions(LONG, guidance_scale=5.0)
    for change in (
        {"control": Control(net, picture)},
        {"ip_adapter": IpAdapter(adapter, picture)},
        {"loras": (Lora(tiny_lora(tmp_path, pipe, seed=1), 1.0),)},
    ):
        told = replace(bare, **change)
        covered = paint(model, replace(told, prompt=SHORT, regions=(Prompt(LONG),)), 8, lay(8, 0, 16))
        assert torch.equal(covered, paint(model, told, 8, None))
        assert not torch.equal(covered, paint(model, bare, 8, None))


@by_subject
def test_what_a_family_cannot_be_told_is_refused_of_a_region_too(subject: Subject) -> None:
    model = load(subject)
    told = replace(subject.told, negative_prompt="", regions=(Prompt(SHORT), Prompt(SHORT, "rain")))
    if model.card.negative_prompt:
        assert model.prepare(told)
    else:
        with pytest.raises(
            UnsupportedConditionError, match=r"regions\.1\.negative_prompt: 'rain' .* allowed: empty"
        ):
            model.prepare(told)
