"""What is stored outlives the version that wrote it: fields that are unknown here are ignored, unlike those of requests.

A field that a later version needs must have a default, so that what is stored already can still be read.
"""

from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from api_schemas.catalog import ModelCard
from api_schemas.events import DurableEvent, durable_event

RECORD_VERSION: Final = 1
"""Stored with each job, event and model card, since 0.1.0. To be raised where older code would misread what is new."""

_SHOWN: Final = 3  # of the faults of one record
_card = TypeAdapter(ModelCard)
T = TypeVar("T")


class UnreadableRecordError(ValueError):
    """A stored record is damaged, or of a version that cannot be read here."""


def read_stored(form: TypeAdapter[T], stored: bytes, version: bytes | None = None) -> T:
    """Read JSON that some version has stored.

    Args:
        version: that it was stored with; None before versions were.

    Raises:
        UnreadableRecordError: with each fault, but without values: they may be prompts.
    """
    try:
        return form.validate_json(stored, extra="ignore")
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in faults[:_SHOWN])
        raise UnreadableRecordError(f"{told}{_compare(version)}") from error


def read_event(stored: bytes, version: bytes | None = None) -> DurableEvent:
    """An event of a job's log.

    Raises:
        UnreadableRecordError: it is damaged, or of a later version.
    """
    return read_stored(durable_event, stored, version)


def read_card(stored: bytes) -> ModelCard:
    """What a worker has published.

    Raises:
        UnreadableRecordError: it is damaged, or of a later version.
    """
    return read_stored(_card, stored)


def write_card(card: ModelCard) -> str:
    """Inverse of `read_card`."""
    return f'{card.model_dump_json()[:-1]},"record_version":{RECORD_VERSION}}}'


def _compare(version: bytes | None) -> str:
    if version is None or version == str(RECORD_VERSION).encode():
        return ""
    return f" (stored as version {version[:20]!a}; this one reads {RECORD_VERSION})"
