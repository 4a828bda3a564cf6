"""Every field of every configuration of a transformer's folder: honoured, without effect, or refused."""

from collections.abc import Callable
from pathlib import Path

from tests.conformance.configurations import (
    TRANSFORMER_PARTS,
    Base,
    Record,
    base_of,
    for_parts,
    list_surprises,
)

__all__ = ["base_of"]


@for_parts(TRANSFORMER_PARTS)
def test_what_diffusers_makes_of_a_changed_field_we_make(
    name: str, part: str, base_of: Callable[[str], Base], tmp_path: Path, record_property: Record
) -> None:
    surprises = list_surprises(name, part, base_of(name), tmp_path, record_property)
    assert not surprises, "\n".join(surprises)
