"""Messages to a client that follows a job, and their ids, `milliseconds-counter`, as Redis draws them."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from api_schemas.events import TERMINAL_TYPES, DurableEvent
from api_schemas.stored import read_event as stored_event


@dataclass(frozen=True, slots=True)
class EventMessage:
    """A durable event as JSON, ready to be sent; one object serves all readers.

    Args:
        type: "snapshot" for the whole state, instead of events that were trimmed.
        seq: "" for a snapshot: a client that loses the connection now must get the event that follows.
        previous: id of the job's event before it, where the live stream told it.
    """

    type: str
    seq: str
    text: str
    previous: str = ""

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL_TYPES


@dataclass(frozen=True, slots=True)
class PreviewMessage:
    """One binary message of one or more preview frames."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Idle:
    """A keep-alive: nothing happened for a while."""


@dataclass(frozen=True, slots=True)
class Restarting:
    """The server is shutting down; clients should reconnect."""


Message = EventMessage | PreviewMessage | Idle | Restarting


def read_event(seq: str, stored: bytes, previous: str = "") -> EventMessage:
    """Give a stored event its id, and the form of this version, whichever has stored it.

    Raises:
        UnreadableRecordError: it is damaged, or of a later version.
    """
    return show_event(seq, stored_event(stored), previous)


def show_event(seq: str, event: DurableEvent, previous: str = "") -> EventMessage:
    """An event as it is sent."""
    text = event.model_copy(update={"seq": seq}).model_dump_json()
    return EventMessage(event.type, seq, text, previous)


START: Final = "0-0"
_FORM = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_LARGEST = 2**64 - 1


@lru_cache(maxsize=256)  # each viewer of a job asks for the same few
def parse(text: str) -> tuple[int, int] | None:
    """The two numbers, in the order in which ids grow; None if this is no id."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    numbers = int(match[1]), int(match[2])
    return numbers if max(numbers) <= _LARGEST else None


def order(seq: str) -> tuple[int, int]:
    """Sort key of an id that Redis made; "" comes before all."""
    return parse(seq) or (0, 0)


def before(seq: str) -> str:
    """The largest id that is smaller."""
    milliseconds, counter = order(seq)
    if counter:
        return f"{milliseconds}-{counter - 1}"
    return f"{milliseconds - 1}-{_LARGEST}" if milliseconds else START
