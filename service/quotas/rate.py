"""How many calls a key may make: the generic cell rate algorithm (ITU-T I.371, annex A, virtual scheduling).

A bucket of `calls_per_minute` calls, refilled one by one at even intervals. All that is stored is when it will be
full again, the "theoretical arrival time" of the next call: a call is refused if it would be over a minute ahead.
"""

import math
from dataclasses import dataclass
from typing import Final, cast

from redis.asyncio import Redis

from api_schemas.usage import calls_key

WINDOW_S: Final = 60
_WINDOW_US: Final = WINDOW_S * 1_000_000
# KEYS: calls.  ARGV: microseconds between two calls.  Answers whether the call may be made and, in microseconds, how
# far ahead of now the bucket is full. What is no number, or further ahead than can be (the server's clock was set
# back), counts as the nearest that can be.
_CALL: Final = f"""
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local stored = redis.pcall('GET', KEYS[1])
if type(stored) == 'table' then redis.call('DEL', KEYS[1]) end
local full = math.min(math.max(type(stored) == 'string' and tonumber(stored) or 0, now), now + {_WINDOW_US})
local ahead = full - now + tonumber(ARGV[1])
if ahead > {_WINDOW_US} then return {{0, math.ceil(full - now)}} end
redis.call('SET', KEYS[1], string.format('%.0f', now + ahead), 'PX', math.ceil(ahead / 1000))
return {{1, math.ceil(ahead)}}
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """What is left of a bucket after a call, allowed or not."""

    limit: int
    allowed: bool
    ahead_us: int

    @property
    def remaining(self) -> int:
        """Calls that may be made now."""
        return max(0, math.floor((_WINDOW_US - self.ahead_us) / (_WINDOW_US / self.limit) + 1e-6))

    @property
    def wait_s(self) -> int:
        """Whole seconds until one call more than `remaining` may be made."""
        needed_us = (self.remaining + 1) * _WINDOW_US / self.limit
        return max(1, math.ceil((needed_us + self.ahead_us - _WINDOW_US) / 1e6 - 1e-6))


class RateLimiter:
    """One round trip a call, for all processes of the service together."""

    def __init__(self, redis: Redis) -> None:
        self._script = redis.register_script(_CALL)

    async def call(self, key_id: str, limit: int) -> Rate:
        """Count a call, unless it is refused.

        Args:
            limit: calls in a minute.
        """
        answer = await self._script(keys=[calls_key(key_id)], args=[_WINDOW_US / limit])
        allowed, ahead_us = cast(tuple[int, int], answer)
        return Rate(limit, bool(allowed), ahead_us)
