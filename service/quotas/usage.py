"""What keys have used, as it is counted in Redis, and that count kept right."""

import re
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Final, cast

from redis.asyncio import Redis

from api_schemas.job import Job
from api_schemas.keys import Quota
from api_schemas.usage import (
    COUNT_USAGE,
    DAY_S,
    STEP_UNITS,
    USAGE_KEY,
    count_arguments,
)
from api_schemas.wire import job_key
from service.quotas.places import FIND_LACK, Lack, read_lack, write_limits

_KEY_ID: Final = re.compile(rb"[0-9a-f]{12}")

# ARGV: a key's id.  Answers its queued and running jobs, its steps of a day with the time of the newest, its bytes,
# and how many microseconds its bucket of calls is from full; times are Unix seconds, '' where there is nothing.
_READ: Final = f"""
{COUNT_USAGE}
local account = '{USAGE_KEY}:' .. ARGV[1]
expect_all(account)
drop_before(account .. ':steps', clock() - {DAY_S})
local newest = redis.call('ZRANGE', account .. ':steps:times', -1, -1, 'WITHSCORES')
local full = redis.pcall('GET', account .. ':calls')
full = type(full) == 'string' and tonumber(full) or 0
local function write(number) return string.format('%.3f', number or 0) end
return {{
  write(redis.call('SCARD', account .. ':queued')), write(redis.call('SCARD', account .. ':running')),
  write(amount_of(account .. ':steps:amounts', 'total')), write(newest[2] and newest[2] + {DAY_S}),
  write(amount_of(account .. ':store:amounts', 'total')), write(math.max(0, full / 1e6 - clock())),
}}
"""
# KEYS: job.  ARGV: the job's seq, the arguments of `count`.  Counts the job, unless it is another's turn: an event
# that was written meanwhile has been counted with it.
_SETTLE: Final = f"""
{COUNT_USAGE}
if redis.call('HGET', KEYS[1], 'seq') == ARGV[1] then count(unpack(ARGV, 2, 8)) end
"""
# ARGV: a key's id, and jobs that are no more.
_FORGET: Final = f"""
{COUNT_USAGE}
local account = '{USAGE_KEY}:' .. ARGV[1]
expect_all(account)
for i = 2, #ARGV do
  redis.call('SREM', account .. ':queued', ARGV[i])
  redis.call('SREM', account .. ':running', ARGV[i])
  enter(account .. ':store', ARGV[i], 0)
end
"""
# ARGV: a key's id.
_LIST_OPEN: Final = f"""
{COUNT_USAGE}
local account = '{USAGE_KEY}:' .. ARGV[1]
expect_all(account)
return redis.call('SUNION', account .. ':queued', account .. ':running')
"""
# KEYS: job.  ARGV: a key's id, the job, bytes, the time when it ended.
_ADD_BYTES: Final = f"""
{COUNT_USAGE}
expect_all('{USAGE_KEY}:' .. ARGV[1])
local store = '{USAGE_KEY}:' .. ARGV[1] .. ':store'
if redis.call('EXISTS', KEYS[1]) == 1 then
  enter(store, ARGV[2], (amount_of(store .. ':amounts', ARGV[2]) or 0) + ARGV[3], tonumber(ARGV[4]))
end
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What one key uses; times are Unix seconds.

    Args:
        call_s: seconds until its bucket of calls is full again.
        megapixel_steps: of the last 24 hours.
        steps_free_at: when they will all be free again; 0 if there are none.
    """

    queued_jobs: int
    running_jobs: int
    megapixel_steps: float
    steps_free_at: float
    store_bytes: int
    call_s: float


class UsageStore:
    """Idempotent: any number of services may keep the count right."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._read = redis.register_script(_READ)
        self._settle = redis.register_script(_SETTLE)
        self._forget = redis.register_script(_FORGET)
        self._find_lack = redis.register_script(FIND_LACK)
        self._list_open = redis.register_script(_LIST_OPEN)
        self._add_bytes = redis.register_script(_ADD_BYTES)

    async def read(self, key_id: str) -> Used:
        """What this key uses now."""
        answer = cast(list[bytes], await self._read(args=[key_id]))
        queued, running, steps, free_at, stored, call_s = map(float, answer)
        return Used(int(queued), int(running), steps / STEP_UNITS, free_at, int(stored), call_s)

    async def find_lack(self, key_id: str, quota: Quota, jobs: int) -> Lack | None:
        """What would keep this key from having so many more jobs, however little work they are; nothing is taken."""
        answer = cast(list[bytes] | None, await self._find_lack(args=[key_id, jobs, 1, *write_limits(quota)]))
        return read_lack(answer) if answer else None

    async def settle(self, jobs: Iterable[Job]) -> None:
        """Count jobs as their records say, which damage or a worker of an earlier version may have prevented."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job in jobs:
                if job.key_id:
                    arguments = [job.seq, *count_arguments(job)]
                    await self._settle(keys=[job_key(job.id)], args=arguments, client=pipeline)
            await pipeline.execute()

    async def forget(self, key_id: str, job_ids: Iterable[str | bytes]) -> None:
        """Count jobs that are no more as nothing; the megapixel-steps of a day stay used."""
        await self._forget(args=[key_id, *job_ids])

    async def forget_anywhere(self, job_id: str) -> None:
        """The same for a job whose record does not say of which key it was."""
        for key_id in await self.list_keys():
            await self.forget(key_id, [job_id])

    async def add_bytes(self, job: Job, size: int) -> None:
        """A job that has ended got more files."""
        if job.key_id and size:
            arguments = [job.key_id, job.id, size, job.finished_at or job.created_at]
            await self._add_bytes(keys=[job_key(job.id)], args=arguments)

    async def list_keys(self) -> list[str]:
        """Ids of all keys that ever had a job."""
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(USAGE_KEY))
        return sorted(member.decode() for member in members if _KEY_ID.fullmatch(member))

    async def list_open(self, key_id: str) -> set[bytes]:
        """What is counted as a job of this key that waits or runs."""
        return set(cast(list[bytes], await self._list_open(args=[key_id])))
