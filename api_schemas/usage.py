"""What the jobs of each API key use, counted where their states change: in the script that writes their logs.

chorale:usage                   set    ids of all keys that ever had a job
chorale:usage:{key}:queued      set    its jobs that wait
chorale:usage:{key}:running     set    its jobs that a worker has
chorale:usage:{key}:steps       ledger thousandths of megapixel-steps of each job, by the time it was created
chorale:usage:{key}:store       ledger bytes in the object store of each job, by the time it ended
chorale:usage:{key}:calls       string when its bucket of calls will be full again, microseconds (service/quotas/rate.py)

A ledger is a hash `…:amounts`, job id -> amount and `total`, and a zset `…:times`, job id by time.
"""

from typing import Final

from api_schemas.events import DurableEvent, JobPreempted, JobQueued, JobResumed, JobStarted
from api_schemas.job import TERMINAL, Job

USAGE_KEY: Final = "chorale:usage"
DAY_S: Final = 86_400
STEP_UNITS: Final = 1000
"""Parts of a megapixel-step that are counted: costs have three decimals, and whole numbers add up."""


def calls_key(key_id: str) -> str:
    return f"{USAGE_KEY}:{key_id}:calls"


def running_key(key_id: str) -> str:
    """The set of a key's jobs that a worker has."""
    return f"{USAGE_KEY}:{key_id}:running"


def count_steps(job: Job) -> int:
    """What a job counts against the megapixel-steps of a day: nothing, if it ended before it began."""
    never_ran = job.status in TERMINAL and job.started_at is None
    return 0 if never_ran else round(job.cost.megapixel_steps * STEP_UNITS)


def count_bytes(job: Job) -> int:
    """Bytes that a job has in the object store for as long as it is kept."""
    sent = sum(picture.size_bytes for picture in job.request.pictures.values())
    made = max(job.result.stored_bytes, job.result.size_bytes) if job.result else 0
    return sent + made


def count_arguments(job: Job) -> list[str | int | float]:
    """What `count` of COUNT_USAGE takes, in its order, of a job that has a key."""
    state = {"queued": "queued", "processing": "running"}.get(job.status, "ended")
    ended_at = job.finished_at or job.created_at
    return [job.key_id, job.id, state, count_steps(job), job.created_at, count_bytes(job), ended_at]


def changes_usage(event: DurableEvent, job: Job) -> bool:
    """Whether an event can have changed what a key uses; `job` is the state after it."""
    moved = isinstance(event, JobQueued | JobStarted | JobResumed | JobPreempted)
    return bool(job.key_id) and (moved or job.status in TERMINAL)


# `count` makes the usage of a key what a job's state says, however often it is told. What is of another type or
# no number is left by damage: it is moved aside or taken for nothing. Times are Unix seconds.
COUNT_USAGE: Final = f"""
local function expect(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then redis.call('RENAME', key, 'chorale:unreadable:' .. key) end
end
local function clock()
  local now = redis.call('TIME')
  return now[1] + now[2] / 1e6
end
local function amount_of(amounts, id) return tonumber(redis.call('HGET', amounts, id)) end
local function sum(amounts)
  local found, whole = redis.call('HGETALL', amounts), 0
  for i = 1, #found, 2 do
    if found[i] ~= 'total' then whole = whole + (tonumber(found[i + 1]) or 0) end
  end
  return whole
end
local function enter(ledger, id, amount, at)
  local amounts, times = ledger .. ':amounts', ledger .. ':times'
  local change = amount - (amount_of(amounts, id) or 0)
  if amount > 0 then
    redis.call('HSET', amounts, id, string.format('%.0f', amount))
    redis.call('ZADD', times, string.format('%.3f', at), id)
  else
    redis.call('HDEL', amounts, id)
    redis.call('ZREM', times, id)
  end
  local total = amount_of(amounts, 'total')
  total = total and total + change or sum(amounts)
  if redis.call('EXISTS', times) == 0 then redis.call('DEL', amounts)
  else redis.call('HSET', amounts, 'total', string.format('%.0f', total)) end
end
local function drop_before(ledger, time)
  local old = redis.call('ZRANGEBYSCORE', ledger .. ':times', '-inf', string.format('(%.3f', time))
  for _, id in ipairs(old) do enter(ledger, id, 0) end
end
local function expect_all(account)
  expect('{USAGE_KEY}', 'set')
  for _, name in ipairs({{':queued', ':running'}}) do expect(account .. name, 'set') end
  for _, name in ipairs({{':steps', ':store'}}) do
    expect(account .. name .. ':amounts', 'hash')
    expect(account .. name .. ':times', 'zset')
  end
end
local function count(key, id, state, steps, created_at, bytes, ended_at)
  local account = '{USAGE_KEY}:' .. key
  expect_all(account)
  redis.call('SADD', '{USAGE_KEY}', key)
  for _, each in ipairs({{'queued', 'running'}}) do
    redis.call(state == each and 'SADD' or 'SREM', account .. ':' .. each, id)
  end
  enter(account .. ':steps', id, tonumber(steps), tonumber(created_at))
  enter(account .. ':store', id, tonumber(bytes), tonumber(ended_at))
end
"""
