"""Every field of every configuration in a folder: honoured, without effect, or refused; none is read past.

One field at a time is changed in a tiny folder. What diffusers' own pipeline makes of that is right. A field that
no table knows fails, so that one which comes with a new release shows itself.
"""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path

import pytest

from tests.conformance.examine import Made, judge, make_ours, make_theirs, refuse_ours
from tests.conformance.families import CASES, build, load_theirs
from tests.conformance.fields import find_fields, find_parts
from tests.conformance.folders import Together, change
from tests.conformance.summary import MATRIX
from tests.conformance.tables import TABLES, Table

PARTS = [(case, part) for case, parts in TABLES.items() for part in parts]


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


@pytest.mark.parametrize(("name", "part"), PARTS, ids=[f"{case}-{part or 'index'}" for case, part in PARTS])
def test_what_diffusers_makes_of_a_changed_field_we_make(
    name: str,
    part: str,
    base_of: Callable[[str], Base],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    base = base_of(name)
    unchanged = base.make(pictures=part == "vae")
    others = {each: component for each, component in base.parts.items() if each != part} if part else {}
    surprises = list[str]()
    for field, tries in TABLES[name][part].tried.items():
        for each in tries:
            folder = change(base.folder, tmp_path / "changed", part, field, each.value)
            outcome = _examine(name, unchanged, folder, others)
            record_property(MATRIX, ("configuration fields", outcome))
            if outcome != each.outcome:
                value = each.value.value if isinstance(each.value, Together) else each.value
                surprises.append(f"{field} = {value!r}: {outcome}; expected: {each.outcome}")
    assert not surprises, "\n".join(surprises)


def _examine(name: str, unchanged: Made, folder: Path, others: Mapping[str, object]) -> str:
    case, pictures = CASES[name], "picture" in unchanged.tensors
    theirs = make_theirs(case, folder, pictures=pictures, parts=others)
    ours = refuse_ours(case, folder) if theirs.error else make_ours(case, folder, pictures=pictures)
    return judge(unchanged, theirs, ours)


@pytest.mark.parametrize(("name", "part"), PARTS, ids=[f"{case}-{part or 'index'}" for case, part in PARTS])
def test_no_field_is_forgotten(name: str, part: str, base_of: Callable[[str], Base]) -> None:
    table = TABLES[name][part]
    known = set(table.tried).union(*(_at(place).tried for place in table.elsewhere))
    forgotten = {
        field for field in find_fields(base_of(name).folder, part) - known
        if not field.startswith("vision_config.") and not _is_shared(field, known)
    }  # fmt: skip
    assert forgotten == set()


def _is_shared(field: str, known: set[str]) -> bool:
    """What a configuration of two parts has of a text model's."""
    return f"text_config.{field}" in known or field.removeprefix("text_config.") in known


def _at(place: tuple[str, str]) -> Table:
    return TABLES[place[0]][place[1]]


def test_no_part_is_forgotten(base_of: Callable[[str], Base]) -> None:
    for name in [name for name, parts in TABLES.items() if "scheduler" in parts]:
        assert {part for part in TABLES[name] if part} == find_parts(base_of(name).folder)
