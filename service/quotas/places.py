"""Whether a key may have one more job: asked in the script that creates it, so that no two get the last place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from api_schemas.keys import Quota
from api_schemas.usage import COUNT_USAGE, DAY_S, STEP_UNITS, USAGE_KEY
from api_schemas.wire import APPEND_BODY

JobLimit = Literal["queued_jobs", "megapixel_steps", "store_bytes"]

# `find_lack` answers nil, or the limit that is reached, what is used of it, and, where that is known, the Unix time
# from which enough will be free by itself. Steps are free again after a day; of the store the answer is the time of
# the newest entry that has to leave. A limit below 0 is none.
_FIND_LACK: Final = f"""
{COUNT_USAGE}
local function find_entry(ledger, excess)
  for start = 0, 1e9, 100 do
    local rows = redis.call('ZRANGE', ledger .. ':times', start, start + 99, 'WITHSCORES')
    if #rows == 0 then return nil end
    for i = 1, #rows, 2 do
      excess = excess - (amount_of(ledger .. ':amounts', rows[i]) or 0)
      if excess <= 0 then return rows[i + 1] end
    end
  end
end
local function total_of(ledger) return amount_of(ledger .. ':amounts', 'total') or 0 end
local function say(limit, used, since, kept_s)
  return {{limit, string.format('%.0f', used), since and string.format('%.3f', since + kept_s) or ''}}
end
local function find_lack(key, jobs, steps, most_queued, most_steps, most_bytes)
  local account = '{USAGE_KEY}:' .. key
  expect_all(account)
  local queued = redis.call('SCARD', account .. ':queued')
  if most_queued >= 0 and queued + jobs > most_queued then return say('queued_jobs', queued) end
  drop_before(account .. ':steps', clock() - {DAY_S})
  local used = total_of(account .. ':steps')
  if most_steps >= 0 and used + steps > most_steps then
    return say('megapixel_steps', used, find_entry(account .. ':steps', used + steps - most_steps), {DAY_S})
  end
  local stored = total_of(account .. ':store')
  if most_bytes >= 0 and stored >= most_bytes then
    return say('store_bytes', stored, find_entry(account .. ':store', stored - most_bytes + 1), 0)
  end
end
"""
# ARGV: the arguments of `find_lack`.  Answers as it does.
FIND_LACK: Final = f"""{_FIND_LACK}
return find_lack(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
"""
# KEYS and ARGV: as APPEND_EVENT, whose event makes a job of a key, and after them the record of the first of the jobs
# like it that are made in one transaction, their number, and the limits that `find_lack` takes.
# Answers what `find_lack` does, and has written nothing; or as APPEND_EVENT does. The first asks for all: the others
# are written if it is, and answer an empty list if not. A job that is there has its place.
APPEND_IF_PLACE: Final = f"""{_FIND_LACK}
if ARGV[17] ~= KEYS[1] then
  if redis.call('EXISTS', ARGV[17]) == 0 then return {{}} end
elseif redis.call('EXISTS', KEYS[1]) == 0 then
  local places, steps = tonumber(ARGV[18]), tonumber(ARGV[13])
  local lack = find_lack(ARGV[10], places, places * steps, tonumber(ARGV[19]), tonumber(ARGV[20]), tonumber(ARGV[21]))
  if lack then return lack end
end
{APPEND_BODY}
"""


@dataclass(frozen=True, slots=True)
class Lack:
    """The limit that keeps a key from having another job.

    Args:
        used: jobs, megapixel-steps or bytes.
        free_at: Unix time from which enough is free if nothing is added; of `store_bytes` when the newest of the
            jobs ended that have to be removed for it. None where nobody knows.
    """

    limit: JobLimit
    used: float
    free_at: float | None


def write_limits(quota: Quota) -> list[int]:
    """The last arguments of the scripts."""
    steps = quota.megapixel_steps_per_day
    limits = quota.queued_jobs, None if steps is None else int(steps * STEP_UNITS), quota.store_bytes
    return [-1 if limit is None else limit for limit in limits]


def read_lack(answer: Sequence[bytes]) -> Lack:
    """What a script said, if it said anything but a string or nil."""
    limit, used, free_at = (each.decode() for each in answer)
    units = STEP_UNITS if limit == "megapixel_steps" else 1
    return Lack(cast(JobLimit, limit), float(used) / units, float(free_at) if free_at else None)
