"""Changed fields of a tiny folder's configurations, one at a time: what diffusers' own pipeline makes of them is right."""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path

import pytest

from tests.conformance.examine import Made, judge, make_ours, make_theirs, refuse_ours
from tests.conformance.families import CASES, build, load_theirs
from tests.conformance.folders import Together, change
from tests.conformance.summary import MATRIX
from tests.conformance.tables import TABLES

_UNETS = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-xl-plain", "stable-diffusion-tiny")
PARTS = [(case, part) for case, parts in TABLES.items() for part in parts]
"""(family, part) of all tables."""
UNET_PARTS = [each for each in PARTS if each[0] in _UNETS]
TRANSFORMER_PARTS = [each for each in PARTS if each[0] not in _UNETS]


def for_parts(parts: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """A test of each."""
    return pytest.mark.parametrize(
        ("name", "part"), parts, ids=[f"{case}-{part or 'index'}" for case, part in parts]
    )


class Base:
    """A tiny folder as it is: diffusers' parts of it, and what diffusers makes of it, where ours agrees."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self._case = CASES[name]
        self._made = dict[bool, Made]()

    @cached_property
    def parts(self) -> dict[str, object]:
        components = load_theirs(self.folder).components
        return {name: component for name, component in components.items() if component is not None}

    def make(self, *, pictures: bool) -> Made:
        if pictures not in self._made:
            theirs = make_theirs(self._case, self.folder, pictures=pictures)
            assert judge(theirs, theirs, make_ours(self._case, self.folder, pictures=pictures)) == "inert"
            self._made[pictures] = theirs
        return self._made[pictures]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    root = tmp_path_factory.mktemp("bases")
    return cache(lambda name: Base(name, build(CASES[name], root / name)))


Record = Callable[[str, object], None]


def list_surprises(name: str, part: str, base: Base, scratch: Path, record_property: Record) -> list[str]:
    """What did not come of a changed field as its table says."""
    unchanged = base.make(pictures=part == "vae")
    others = {each: component for each, component in base.parts.items() if each != part} if part else {}
    surprises = list[str]()
    for field, tries in TABLES[name][part].tried.items():
        for each in tries:
            folder = change(base.folder, scratch / "changed", part, field, each.value)
            outcome = _examine(name, unchanged, folder, others)
            record_property(MATRIX, ("configuration fields", outcome))
            if outcome != each.outcome:
                value = each.value.value if isinstance(each.value, Together) else each.value
                surprises.append(f"{field} = {value!r}: {outcome}; expected: {each.outcome}")
    return surprises


def _examine(name: str, unchanged: Made, folder: Path, others: Mapping[str, object]) -> str:
    case, pictures = CASES[name], "picture" in unchanged.tensors
    theirs = make_theirs(case, folder, pictures=pictures, parts=others)
    ours = refuse_ours(case, folder) if theirs.error else make_ours(case, folder, pictures=pictures)
    return judge(unchanged, theirs, ours)
