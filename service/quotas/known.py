"""The quota of a key, by its id."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from api_schemas.keys import ApiKey, Quota

_FRESH_S: Final = 5.0
_KEPT: Final = 10_000
FindKey = Callable[[str], Awaitable[ApiKey | None]]


class KnownKeys:
    """Keys by their ids. Those that call are known without asking; what is known holds for some seconds.

    Args:
        find: reads the record of a key; None if there is none.
    """

    def __init__(self, find: FindKey) -> None:
        self._find = find
        self._seen: OrderedDict[str, tuple[ApiKey, float]] = OrderedDict()

    def note(self, key: ApiKey) -> None:
        """A key as it was just read, because it calls."""
        self._seen[key.id] = key, time.monotonic()
        self._seen.move_to_end(key.id)
        if len(self._seen) > _KEPT:
            self._seen.popitem(last=False)

    async def find(self, key_id: str) -> ApiKey | None:
        """The key of this id, as it was at most five seconds ago; None if there is none."""
        known = self._seen.get(key_id)
        if known is not None and time.monotonic() - known[1] < _FRESH_S:
            return known[0]
        key = await self._find(key_id)
        if key is not None:
            self.note(key)
        return key

    async def find_quota(self, key_id: str) -> Quota:
        """What the key may use. Without a key, or for one that is no more, there is no limit."""
        key = await self.find(key_id) if key_id else None
        return Quota() if key is None else key.quota
