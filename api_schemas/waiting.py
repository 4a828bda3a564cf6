"""Where jobs wait until a worker has a place for them, and the scripts that move them (deploy/decisions/0010).

chorale:waiting:{queue}  zset  `API key:order:level:job`, all of score 0: the jobs of a key side by side, the next one first
chorale:turns:{queue}    zset  keys that have jobs waiting; the one whose turn is next has the lowest score
chorale:served:{queue}   zset  keys that had a turn lately: its number
chorale:limits:{queue}   hash  key -> how many jobs it may have in RQ's queues and at workers; of keys that have jobs waiting
chorale:sizes:{queue}    hash  key -> how many jobs it has waiting

RQ's queue holds about one job for each worker: the one that it runs. The next one is put there when a job
comes while a worker is idle, and by each worker that looks for a job. RQ's hash of a job is there from the
beginning; its field `key_id` is written when the job leaves.
"""

from collections.abc import Iterable
from typing import Final

from api_schemas.job import Job
from api_schemas.wire import UNREADABLE_PREFIX, WORKER_KEY_PREFIX, WORKERS_KEY, queue_name, waiting_types

_LEVELS: Final = {"high": 0, "normal": 1, "low": 2}
_HEAD_START_US: Final = 86_400 * 1_000_000  # of each level over the one below

# KEYS: waiting, turns, served, limits, sizes, RQ's queue.  ARGV: name of the queue, its model, then each script's own.
_FUNCTIONS: Final = f"""
local WAITING, TURNS, SERVED, LIMITS, SIZES, LISTED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local QUEUE, MODEL = ARGV[1], ARGV[2]

local function parse(member) return string.match(member, '^([^:]*):(%d+):([012]):(%w+)$') end

local function range_of(key) return '[' .. key .. ':', '(' .. key .. ';' end

local function first_of(key)
  local low, high = range_of(key)
  return redis.call('ZRANGEBYLEX', WAITING, low, high, 'LIMIT', 0, 1)[1]
end

-- After each change of a key's jobs: how many it has now.
local function count(key)
  local size = redis.call('ZLEXCOUNT', WAITING, range_of(key))
  if size > 0 then
    redis.call('HSET', SIZES, key, size)
  else
    redis.call('ZREM', TURNS, key)
    redis.call('HDEL', LIMITS, key)
    redis.call('HDEL', SIZES, key)
  end
  return size
end

-- Of a key that had no turn lately: before all that had one; by the level of its job, then by when that came.
local function come_in(key, order, level)
  local came_ms = math.floor((tonumber(order) - level * {_HEAD_START_US}) / 1000)
  redis.call('ZADD', TURNS, 'LT', came_ms - (3 - level) * 2^43, key)
end

local function join(key, order, level)
  local turn = tonumber(redis.call('ZSCORE', TURNS, key))
  if turn and turn >= 0 then return end
  local served = redis.call('ZSCORE', SERVED, key)
  if served then redis.call('ZADD', TURNS, served, key) else come_in(key, order, level) end
end

-- From the jobs that wait, where what was stored of turns is lost or is no number.
local function rebuild_turns()
  redis.call('DEL', TURNS, SERVED, SIZES)
  local low = '-'
  while true do
    local member = redis.call('ZRANGEBYLEX', WAITING, low, '+', 'LIMIT', 0, 1)[1]
    if not member then return end
    local key, order, level = parse(member)
    if key then
      come_in(key, order, level)
      count(key)
      low = '[' .. key .. ';'
    else
      redis.call('ZREM', WAITING, member)
    end
  end
end

local function last_turn()
  local last = 0
  for _, index in ipairs({{SERVED, TURNS}}) do
    last = math.max(last, tonumber(redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2] or 0))
  end
  return last
end

-- Keys of other types are moved out of the way, and what is no job of ours is dropped.
local function mend()
  for number, kind in ipairs({{'zset', 'zset', 'zset', 'hash', 'hash', 'list'}}) do
    local found = redis.call('TYPE', KEYS[number]).ok
    if found ~= 'none' and found ~= kind then
      redis.call('RENAME', KEYS[number], '{UNREADABLE_PREFIX}' .. KEYS[number])
    end
  end
  redis.call('ZREMRANGEBYSCORE', WAITING, '-inf', '(0')
  redis.call('ZREMRANGEBYSCORE', WAITING, '(0', '+inf')
  local turns_are_lost = redis.call('ZCARD', WAITING) > 0 and redis.call('ZCARD', TURNS) == 0
  if turns_are_lost or last_turn() >= 2^52 then rebuild_turns() end
end

local function read(...)
  local answer = redis.pcall(...)
  return answer.err and {{}} or answer
end

-- Ids of jobs that workers of a queue have taken: those that are started, as long as their leases run, and those that are not yet.
local function find_held(queue)
  local held, now = {{}}, redis.call('TIME')[1]
  -- One that was canceled while it was taken has no hash, and its id stays where it is until a janitor comes along.
  local function note(id)
    if id and redis.call('EXISTS', 'rq:job:' .. id) == 1 then held[id] = true end
  end
  for _, lease in ipairs(read('ZRANGEBYSCORE', 'rq:wip:' .. queue, now, '+inf')) do
    note(string.match(lease, '^(%w+):%w+$'))
  end
  for _, id in ipairs(read('LRANGE', 'rq:queue:' .. queue .. ':intermediate', 0, -1)) do
    note(string.match(id, '^%w+$'))
  end
  return held
end

local function count_places()
  local count = -redis.call('LLEN', LISTED)
  for _, worker in ipairs(read('SMEMBERS', '{WORKERS_KEY}')) do
    if redis.pcall('GET', '{WORKER_KEY_PREFIX}' .. worker) == MODEL then count = count + 1 end
  end
  for _ in pairs(find_held(QUEUE)) do count = count - 1 end
  return count
end

local shares  -- jobs of each key in all of RQ's queues and at workers; counted when a key with a limit comes along

local function count_shares()
  shares = {{}}
  for _, name in ipairs(read('SMEMBERS', 'rq:queues')) do
    local taken = find_held(string.sub(name, 10))
    for _, id in ipairs(read('LRANGE', name, 0, -1)) do taken[id] = true end
    for id in pairs(taken) do
      local key = redis.pcall('HGET', 'rq:job:' .. id, 'key_id')
      if type(key) == 'string' then shares[key] = (shares[key] or 0) + 1 end
    end
  end
end

local function is_at_limit(key)
  local limit = tonumber(redis.call('HGET', LIMITS, key))
  if not limit then return false end
  if not shares then count_shares() end
  return (shares[key] or 0) >= limit
end

-- The next job: of the key whose turn it is, or of the first one behind it that is not at its limit.
local function find_next()
  local place = 0
  while true do
    local key = redis.call('ZRANGE', TURNS, place, place)[1]
    if not key then return end
    local member = first_of(key)
    if not member then
      count(key)
    elseif not parse(member) then
      redis.call('ZREM', WAITING, member)
    elseif is_at_limit(key) then
      place = place + 1
    else
      return key, member
    end
  end
end

-- The key comes last now. A key is forgotten once all others that wait had a turn after it.
local function pass_turn(key)
  local number = last_turn() + 1
  redis.call('ZADD', SERVED, number, key)
  if count(key) > 0 then redis.call('ZADD', TURNS, number, key) end
  local lowest = redis.call('ZRANGE', TURNS, 0, 0, 'WITHSCORES')[2]
  if lowest and tonumber(lowest) > 0 then redis.call('ZREMRANGEBYSCORE', SERVED, '-inf', '(' .. lowest) end
end

local function release(places)
  local released = {{}}
  while #released < places do
    local key, member = find_next()
    if not key then break end
    local _, _, _, id = parse(member)
    redis.call('ZREM', WAITING, member)
    if redis.call('TYPE', 'rq:job:' .. id).ok == 'hash' then
      redis.call('HSET', 'rq:job:' .. id, 'key_id', key)
      redis.call('RPUSH', LISTED, id)
      released[#released + 1] = id
      if shares then shares[key] = (shares[key] or 0) + 1 end
      pass_turn(key)
    else
      count(key)  -- what RQ had of the job is lost: the reconciler puts both back
    end
  end
  return released
end
"""

ENQUEUE: Final = (
    _FUNCTIONS
    + """
-- ARGV: member, limit of its key or "", RQ's hash of the job in turns. Answers 0, and does nothing, if RQ knows the job.
mend()
local key, order, level, id = parse(ARGV[3])
if redis.call('EXISTS', 'rq:job:' .. id) == 1 then return 0 end
redis.call('HSET', 'rq:job:' .. id, unpack(ARGV, 5))
redis.pcall('SADD', 'rq:queues', LISTED)
redis.call('ZADD', WAITING, 0, ARGV[3])
join(key, order, level)
count(key)
if ARGV[4] ~= '' then redis.call('HSET', LIMITS, key, ARGV[4]) end
release(count_places())
return 1
"""
)

RELEASE: Final = (
    _FUNCTIONS
    + """
-- ARGV: "1" of a worker that has no job and whose heartbeat may not be seen, then keys and limits in turns.
mend()
if redis.call('ZCARD', WAITING) == 0 then return {} end
for number = 4, #ARGV, 2 do
  if not redis.call('ZSCORE', TURNS, ARGV[number]) or ARGV[number + 1] == '' then
    redis.call('HDEL', LIMITS, ARGV[number])
  else
    redis.call('HSET', LIMITS, ARGV[number], ARGV[number + 1])
  end
end
local places = count_places()
if ARGV[3] == '1' and redis.call('LLEN', LISTED) == 0 then places = math.max(places, 1) end
return release(places)
"""
)

REMOVE: Final = (
    _FUNCTIONS
    + """
-- ARGV: member. Answers 0, and does nothing, if it does not wait.
mend()
if redis.call('ZREM', WAITING, ARGV[3]) == 0 then return 0 end
local key, _, _, id = parse(ARGV[3])
if key then
  redis.call('DEL', 'rq:job:' .. id)
  count(key)
end
return 1
"""
)

FIND_POSITIONS: Final = (
    _FUNCTIONS
    + """
-- ARGV: members. Answers for each how many jobs will start before it, -1 if it is in no queue.
local listed, sizes, positions = redis.call('LLEN', LISTED), {}, {}
local keys, counted = redis.call('ZRANGE', TURNS, 0, -1), redis.call('HGETALL', SIZES)
for number = 1, #counted, 2 do sizes[counted[number]] = tonumber(counted[number + 1]) end
local function count_before(member)
  local own = parse(member)
  local rank = redis.call('ZLEXCOUNT', WAITING, range_of(own), '(' .. member)
  local before, turns = rank, rank + 1  -- in so many turns: those before it in a round have one more than those after it
  for _, key in ipairs(keys) do
    if key == own then turns = rank else before = before + math.min(sizes[key] or 0, turns) end
  end
  return before
end
for number = 3, #ARGV do
  local member = ARGV[number]
  if redis.call('ZSCORE', WAITING, member) then
    positions[#positions + 1] = listed + count_before(member)
  else
    -- From the end: a list of an earlier version is long, and asked for most are those at its end.
    local _, _, _, id = parse(member)
    positions[#positions + 1] = redis.call('LPOS', LISTED, id, 'RANK', -1) or -1
  end
end
return positions
"""
)


def name_keys(queue: str) -> list[str]:
    """KEYS of all scripts here."""
    return [*waiting_types(queue), f"rq:queue:{queue}"]


def name_member(job: Job) -> str:
    """The job as a member of `waiting`: its key's jobs are in the order in which they came, each level a day ahead of the next."""
    level = _LEVELS[job.request.priority]
    order = round(job.created_at * 1e6) + level * _HEAD_START_US
    return f"{job.key_id}:{order:017d}:{level}:{job.id}"


def find_job(member: bytes) -> bytes:
    """The id in a member; whatever stands there in one that is none."""
    return member.rpartition(b":")[2]


def release_arguments(
    model: str, *, is_idle: bool, limits: Iterable[tuple[str, int | None]] = ()
) -> list[str]:
    """ARGV of RELEASE."""
    told = [word for key, limit in limits for word in (key, "" if limit is None else str(limit))]
    return [queue_name(model), model, "1" if is_idle else "", *told]
