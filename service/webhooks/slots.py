"""How many POSTs may go to one host at the same time."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

MOST_AT_ONCE: Final = 8
WAIT_S: Final = 5.0
_MOST_WAITING: Final = 32


def name_host(url: str) -> str:
    """Of an http URL, whatever its port and however it goes on: one name for each host."""
    return (urlsplit(url).hostname or "").rstrip(".")


class HostSlots:
    """A host that answers soon gets all in turn; of one that hangs few wait here, and those not for long."""

    def __init__(self) -> None:
        self._users = Counter[str]()
        self._slots: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def take(self, host: str) -> AsyncGenerator[bool]:
        """Whether a slot came free in time; it is held until the end of the block."""
        if self._users[host] >= MOST_AT_ONCE + _MOST_WAITING:
            yield False
            return
        self._users[host] += 1
        slot = self._slots.setdefault(host, asyncio.Semaphore(MOST_AT_ONCE))
        taken = await _acquire(slot)
        try:
            yield taken
        finally:
            if taken:
                slot.release()
            self._users[host] -= 1
            if not self._users[host]:
                del self._users[host], self._slots[host]


async def _acquire(slot: asyncio.Semaphore) -> bool:
    try:
        async with asyncio.timeout(WAIT_S):
            return await slot.acquire()
    except TimeoutError:
        return False
