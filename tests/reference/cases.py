"""Pictures that must stay as they are while the code that makes them is rearranged: small ones, of every kind."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

from tests.worker.adapters.families import transformers, unets
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step
from worker.engine.generate import PreparedModel, generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import LowBandPlan, Picture
from worker.engine.stitch import Band

_SEED = 3
_BUNDLED = Path(__file__).parents[2] / "worker" / "bundled"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and what it is told; `side` is that of its tile, latent pixels."""

    name: str
    load: Callable[[], LoadedModel]
    conditions: Conditions
    side: int


@dataclass(frozen=True, slots=True)
class Case:
    """One picture: `make` gives it as (h, w, 3), uint8."""

    name: str
    make: Callable[[], Tensor]


def list_cases() -> Iterator[Case]:
    """Every family flat and as a cascade; one model in all other ways; the bundled one."""
    subjects = list(_list_subjects())
    for subject in subjects:
        yield Case(f"{subject.name}, flat", lambda subject=subject: _paint(subject, _flat(subject)))
        yield Case(f"{subject.name}, cascade", lambda subject=subject: _paint(subject, _cascade(subject)))
    yield from _list_ways(subjects[0])


def _list_ways(subject: Subject) -> Iterator[Case]:
    plan, unguided = _flat(subject), replace(subject, conditions=Conditions("brick wall"))
    stage = plan.stages[0]

    def vary(**changes: object) -> GenerationPlan:
        return replace(plan, stages=(replace(stage, denoise=replace(stage.denoise, **changes)),))

    yield Case("fixed grid", lambda: _paint(subject, vary(moving=False, overlap=4)))
    yield Case(
        "wraps both ways", lambda: _paint(subject, vary(canvas=replace(stage.canvas, wrap=(True, True))))
    )
    yield Case(
        "wraps no way", lambda: _paint(subject, vary(canvas=replace(stage.canvas, wrap=(False, False))))
    )
    yield Case("without guidance", lambda: _paint(unguided, plan))
    yield Case("bounded decode", lambda: _paint(subject, replace(plan, decode=DecodePlan(8, "bounded"))))
    yield Case("sixteen bits", lambda: _paint(subject, replace(plan, bit_depth=16)) // 256)
    yield Case("a corner", lambda: _paint(subject, replace(plan, stages=(replace(stage, shown=(0.7, 0.9)),))))
    yield Case("two ranks", lambda: _paint_by_two(subject, plan))
    yield Case("killed and resumed", lambda: _resume(subject, _cascade(subject)))


def _list_subjects() -> Iterator[Subject]:
    for unet in unets.CASES:
        yield Subject(unet.name, _loader(unet.name, unet.build), Conditions(unets.PROMPT, *unet.asked[-1]), 8)
    for case in transformers.CASES:
        told = Conditions(transformers.PROMPT, case.negative_prompt, case.guidance_scales[-1])
        yield Subject(case.name, _loader(case.name, case.build), told, case.noise[1] // 2)
    yield Subject(
        "bundled", cache(lambda: load_model(str(_BUNDLED), "cpu", "float32")), Conditions("lava"), 16
    )


def _loader(name: str, build: Callable[[Path], object]) -> Callable[[], LoadedModel]:
    @cache
    def load() -> LoadedModel:
        folder = Path(mkdtemp()) / name
        torch.manual_seed(0)  # some parts are made of what numbers come next
        build(folder)
        return load_model(str(folder), "cpu")

    return load


def _grid(side: int, scale: int) -> DenoisePlan:
    return DenoisePlan(
        Plane(side * scale, side * scale + 4, (False, True)), side, 0, 4, moving=True, seed=_SEED
    )


def _flat(subject: Subject) -> GenerationPlan:
    stage = StagePlan(_grid(subject.side, 2), 2, modules=2)
    return GenerationPlan(_SEED, subject.load().card.latent_channels, (stage,), DecodePlan(tile_size=8))


def _cascade(subject: Subject) -> GenerationPlan:
    first = StagePlan(_grid(subject.side, 1), 2)
    second = StagePlan(_grid(subject.side, 2), 1, Picture(1, LowBandPlan()))
    return replace(_flat(subject), stages=(first, second))


def _prepare(subject: Subject) -> PreparedModel:
    return subject.load().prepare(subject.conditions)


def _paint(subject: Subject, plan: GenerationPlan) -> Tensor:
    return _join(generate(plan, _prepare(subject)))


def _join(events: Iterator[object]) -> Tensor:
    return torch.cat([event.rows.int() for event in events if isinstance(event, Band)])


def _paint_by_two(subject: Subject, plan: GenerationPlan) -> Tensor:
    prepared = _prepare(subject)
    with ThreadPoolExecutor(2) as pool:
        first, _ = pool.map(lambda group: _join(generate(plan, prepared, group=group)), thread_groups(2))
    return first


def _resume(subject: Subject, plan: GenerationPlan) -> Tensor:
    prepared = _prepare(subject)
    checkpoints: list[Checkpoint] = []
    for event in generate(plan, prepared):
        if isinstance(event, Step):
            checkpoints.append(event.checkpoint)
    return _join(generate(plan, prepared, checkpoints[-2]))
