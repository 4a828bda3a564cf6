"""Messages to a client that follows a job: events as text, previews as bytes, keep-alives."""

import json
from dataclasses import dataclass

from api_schemas.events import TERMINAL_TYPES


@dataclass(frozen=True, slots=True)
class EventMessage:
    """A durable event as JSON, ready to be sent; one object serves all readers."""

    type: str
    seq: str
    text: str

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL_TYPES


@dataclass(frozen=True, slots=True)
class SnapshotMessage:
    """The whole state, instead of events that were trimmed."""

    text: str


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


Message = EventMessage | SnapshotMessage | PreviewMessage | Idle | Restarting


def read_event(seq: str, stored: bytes) -> EventMessage:
    """Give a stored event its id. Only validated events are stored, so it is not validated again."""
    body = json.loads(stored)
    body["seq"] = seq
    return EventMessage(type=body["type"], seq=seq, text=json.dumps(body, ensure_ascii=False))
