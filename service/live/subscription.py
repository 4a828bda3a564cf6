"""The buffer between the one reader of the live stream and one client."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.messages import EventMessage

MAX_EVENTS: Final = 500
MAX_PREVIEW_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Delivery:
    """All that came since the last look.

    Args:
        behind: events may be missing; the durable log has them.
        stale: previews were dropped; the stored canvas has them.
        closed: the process is shutting down.
    """

    events: Sequence[EventMessage] = ()
    previews: Sequence[bytes] = ()
    behind: bool = False
    stale: bool = False
    closed: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.events or self.previews or self.behind or self.stale or self.closed)


class Subscription:
    """Holds little: what does not fit is dropped and fetched again from Redis when the client is ready.

    Args:
        holder: of the API key by which a client opened it: key id and digest of the secret, both empty where no
            keys were required; None for the service itself.
    """

    def __init__(self, *, previews: bool, holder: tuple[str, str] | None = None) -> None:
        self.wants_previews = previews
        self.holder = holder
        self._events: list[EventMessage] = []
        self._previews: list[bytes] = []
        self._preview_bytes = 0
        self._behind = self._stale = self._closed = False
        self._wake = asyncio.Event()

    def put_events(self, events: Sequence[EventMessage]) -> None:
        if len(self._events) + len(events) > MAX_EVENTS:
            self.fall_behind()
        elif not self._behind:
            self._events.extend(events)
        self._wake.set()

    def put_previews(self, batches: Sequence[bytes]) -> int:
        """Keep what fits; returns how many batches were dropped."""
        size = sum(map(len, batches))
        self._wake.set()
        if self._stale:
            return len(batches)
        if self._preview_bytes + size > MAX_PREVIEW_BYTES:
            return self._drop_previews() + len(batches)
        self._previews.extend(batches)
        self._preview_bytes += size
        return 0

    def fall_behind(self) -> None:
        """Forget the events; the client reads them from the log."""
        self._events.clear()
        self._behind = True
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def take(self, timeout_s: float) -> Delivery:
        """All that is there, or, after `timeout_s` without anything, an empty delivery."""
        alarm = asyncio.get_running_loop().call_later(timeout_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            alarm.cancel()
        delivery = Delivery(self._events, self._previews, self._behind, self._stale, self._closed)
        self._events, self._previews, self._preview_bytes = [], [], 0
        self._behind = self._stale = False
        self._wake.clear()
        return delivery

    def _drop_previews(self) -> int:
        dropped = len(self._previews)
        self._previews.clear()
        self._preview_bytes = 0
        self._stale = True
        return dropped
