"""Changed fields of a tiny folder's configurations, one at a time: what diffusers' own pipeline makes of them is right."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from tests.conformance.examine import Made, judge, make_ours, make_theirs, refuse_ours
from tests.conformance.families import CASES, build, load_theirs
from tests.conformance.folders import Together, change
from tests.conformance.remembered import remember_texts
from tests.conformance.summary import MATRIX
from tests.conformance.tables import TABLES
from tests.worker.adapters.families.transformers import FamilyCase

_UNETS = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-xl-plain", "stable-diffusion-tiny")
PARTS = [(case, part) for case, parts in TABLES.items() for part in parts]
"""(family, part) of all tables."""
UNET_PARTS = [each for each in PARTS if each[0] in _UNETS]
TRANSFORMER_PARTS = [each for each in PARTS if each[0] not in _UNETS]


def case_of(name: str, part: str) -> FamilyCase:
    """What only a scheduler tells apart takes more than two steps to show."""
    return CASES[name] if part in ("", "scheduler") else replace(CASES[name], steps=2)


def for_parts(parts: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """A test of each."""
    return pytest.mark.parametrize(
        ("name", "part"), parts, ids=[f"{case}-{part or 'index'}" for case, part in parts]
    )


class Base:
    """A tiny folder as it is: its parts for diffusers and for us, and what diffusers makes of it, where ours agrees."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self._load = CASES[name].load
        self._made = dict[tuple[int, bool], Made]()

    @cached_property
    def parts(self) -> dict[str, object]:
        return _list_parts(load_theirs(self.folder))

    @cached_property
    def our_parts(self) -> dict[str, object]:
        return _list_parts(self._load(self.folder, torch.device("cpu")).pipe)

    def make(self, case: FamilyCase, *, pictures: bool) -> Made:
        asked = case.steps, pictures
        if asked not in self._made:
            theirs = make_theirs(case, self.folder, pictures=pictures, parts=self.parts)
            ours = make_ours(case, self.folder, pictures=pictures, parts=self.our_parts)
            assert judge(theirs, theirs, ours) == "inert"
            self._made[asked] = theirs
        return self._made[asked]


def _list_parts(pipe: DiffusionPipeline) -> dict[str, object]:
    parts = {name: component for name, component in pipe.components.items() if component is not None}
    remember_texts(parts)
    return parts


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    root = tmp_path_factory.mktemp("bases")
    return cache(lambda name: Base(name, build(CASES[name], root / name)))


Record = Callable[[str, object], None]


def list_surprises(name: str, part: str, base: Base, scratch: Path, record_property: Record) -> list[str]:
    """What did not come of a changed field as its table says."""
    case = case_of(name, part)
    unchanged = base.make(case, pictures=part == "vae")
    theirs, ours = (without(part, parts) for parts in (base.parts, base.our_parts))
    surprises = list[str]()
    for field, tries in TABLES[name][part].tried.items():
        for each in tries:
            folder = change(base.folder, scratch / "changed", part, field, each.value)
            outcome = examine(case, unchanged, folder, theirs, ours)
            record_property(MATRIX, ("configuration fields", outcome))
            if outcome != each.outcome:
                value = each.value.value if isinstance(each.value, Together) else each.value
                surprises.append(f"{field} = {value!r}: {outcome}; expected: {each.outcome}")
    return surprises


def without(part: str, parts: dict[str, object]) -> dict[str, object]:
    """All that a change of the part leaves as it is; the index counts for each."""
    return {each: component for each, component in parts.items() if each != part} if part else {}


def examine(
    case: FamilyCase,
    unchanged: Made,
    folder: Path,
    their_parts: Mapping[str, object],
    our_parts: Mapping[str, object],
) -> str:
    pictures = "picture" in unchanged.tensors
    theirs = make_theirs(case, folder, pictures=pictures, parts=their_parts)
    ours = (
        refuse_ours(case, folder, our_parts) if theirs.error
        else make_ours(case, folder, pictures=pictures, parts=our_parts)
    )  # fmt: skip
    return judge(unchanged, theirs, ours)
