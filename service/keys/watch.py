"""Ends the event streams of keys that are accepted no more, and without a key once there is one."""

import asyncio
import logging
from typing import Final

from redis.exceptions import RedisError

from service.keys.store import KeyStore
from service.live.hub import LiveHub

_EVERY_S: Final = 1.0
log = logging.getLogger(__name__)


class KeyWatch:
    """Looks at the keys of all open streams once a second, in one call; their clients are refused when they come again."""

    def __init__(self, keys: KeyStore, hub: LiveHub) -> None:
        self._keys = keys
        self._hub = hub

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                if ended := await self._keys.find_ended(list(self._hub.list_holders())):
                    self._hub.release(ended)
            except (RedisError, OSError) as error:
                log.warning("keys of open streams cannot be looked at: %s", error)
