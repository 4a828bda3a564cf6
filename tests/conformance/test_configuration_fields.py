"""No field of any configuration in a folder is read past.

A field that no table knows fails, so that one which comes with a new release shows itself. What comes of those that
are known: `test_unet_fields.py` and `test_transformer_fields.py`, of which each can be run beside the other.
"""

from collections.abc import Callable

from tests.conformance.configurations import PARTS, Base, base_of, for_parts
from tests.conformance.fields import find_fields, find_parts
from tests.conformance.tables import TABLES, Table

__all__ = ["base_of"]


@for_parts(PARTS)
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
