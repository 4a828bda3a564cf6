"""Keys in Redis and in the object store, and the one script that writes a job's log.

chorale:job:{id}        hash   job (JSON of the folded Job), seq (last stream id), execution (fence token), version
chorale:events:{id}     stream durable events: event, version
chorale:previews:{id}   hash   "left,top" -> newest preview frame of that cell
chorale:children:{id}   set    jobs that were derived from it
chorale:cancel:{id}     string set when a cancellation was requested
chorale:jobs            zset   job id by creation time
chorale:jobs:{key id}   zset   the same, of one API key's jobs
chorale:keys            zset   id of each API key by creation time, of those that are revoked too
chorale:key:{id}        string StoredKey JSON, without the secret
chorale:session:{h}     string of a browser that has signed in: digest of the secret that it gave; h is that of its cookie
chorale:ticket:{h}      string job id and digest of the secret that asked for it; h is that of the ticket
chorale:active          set    jobs that may not have ended yet: a superset, so that no pass reads every record
chorale:live            stream all durable events and preview frames of all jobs, short, for live readers
chorale:models          hash   model name -> ModelCard JSON
chorale:worker:{name}   string name of the model that it serves; expires when heartbeats stop
chorale:trouble:{name}  string what is wrong with a degraded worker; expires with its heartbeat
chorale:connected:{name} string "1" if the worker saw its own connection in the queue server's list; expires alike
chorale:paused:{name}   string `code: message`, why the worker takes no jobs; expires alike
chorale:paused          set    names of workers that take no jobs
chorale:memory:{name}   string bytes of main memory that the worker holds; expires with its heartbeat
chorale:workers         set    names of workers with recent heartbeats, so that no scan of all keys is needed
chorale:probe           string written by readiness, to see whether the server takes it
chorale:webhook:job:{id} hash  webhook that a request named: url, events, secrets in the clear, disabled
chorale:webhook:key:{id} hash  the same of an API key; the id is empty where no keys are used
chorale:webhooks:due    zset   deliveries, `job/event/endpoint`, by the Unix time in ms of their next attempt
chorale:webhooks:workers zset  processes that deliver, by the Unix time of their last sign of life
chorale:webhooks:outcomes hash what became of attempts -> how many
chorale:deliveries:{id} hash   `event/endpoint` -> attempts of a job's delivery (JSON)
chorale:janitor:{queue} string the worker that cleans the queue, for as long as the others need not
chorale:idempotency:{k} string fingerprint of the body and job id
chorale:attempt:{h}     string token of the latest request of this content that OpenAI's clients may repeat
chorale:waiting:{queue} zset   jobs that are not yet in RQ's queue; with turns, served, limits, sizes: see waiting.py
chorale:deadlines       zset   jobs that may expire: when
chorale:unreadable:{k}  any    what was found at key k and is of another type
chorale:usage:…         what the jobs of each API key use: see usage.py

jobs/{id}/{execution}/  picture, deep zoom, and the final state that the picture was decoded from
inputs/{id}/            pictures that came with the request, as PNG
checkpoints/{id}/       of a running job
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, unquote

from pydantic import TypeAdapter

from api_schemas.events import DurableEvent, Result
from api_schemas.generation import PicturePart
from api_schemas.job import Job
from api_schemas.stored import RECORD_VERSION, UnreadableRecordError, read_stored
from api_schemas.usage import COUNT_USAGE, USAGE_KEY, changes_usage, count_arguments
from api_schemas.webhook import (
    ALL_EVENTS,
    DUE_KEY,
    ENDPOINTS,
    OUTCOMES_KEY,
    WEBHOOK_WORKERS_KEY,
    webhook_key,
)

QUEUE_PREFIX: Final = "chorale:"
RUN_JOB: Final = "worker.runner.run_job"

JOBS_KEY: Final = "chorale:jobs"
KEYS_KEY: Final = "chorale:keys"
ACTIVE_KEY: Final = "chorale:active"
DEADLINES_KEY: Final = "chorale:deadlines"
LIVE_KEY: Final = "chorale:live"
MODELS_KEY: Final = "chorale:models"
WORKER_KEY_PREFIX: Final = "chorale:worker:"
TROUBLE_KEY_PREFIX: Final = "chorale:trouble:"
CONNECTED_KEY_PREFIX: Final = "chorale:connected:"
PAUSED_KEY_PREFIX: Final = "chorale:paused:"
PAUSED_KEY: Final = "chorale:paused"
MEMORY_KEY_PREFIX: Final = "chorale:memory:"
WORKERS_KEY: Final = "chorale:workers"
UNREADABLE_PREFIX: Final = "chorale:unreadable:"
PROBE_KEY: Final = "chorale:probe"
LIVE_MAXLEN: Final = 5_000
EVENTS_MAXLEN: Final = 2_000


def queue_name(model: str) -> str:
    """The queue of one model's jobs, so that each job waits for a worker that serves its model.

    RQ appends `:intermediate` to names, so no name may hold a colon of its own.
    """
    return QUEUE_PREFIX + quote(model, safe="")


def model_of_queue(name: str) -> str | None:
    """Inverse of `queue_name`; None if the queue is not one of ours."""
    return unquote(name.removeprefix(QUEUE_PREFIX)) if name.startswith(QUEUE_PREFIX) else None


def job_key(job_id: str) -> str:
    return f"chorale:job:{job_id}"


def events_key(job_id: str) -> str:
    return f"chorale:events:{job_id}"


def previews_key(job_id: str) -> str:
    return f"chorale:previews:{job_id}"


def children_key(job_id: str) -> str:
    return f"chorale:children:{job_id}"


def cancel_key(job_id: str) -> str:
    return f"chorale:cancel:{job_id}"


EXPIRED: Final = "expired"  # instead of "1": the job has missed its deadline


def janitor_key(queue: str) -> str:
    return f"chorale:janitor:{queue}"


def idempotency_key(key: str) -> str:
    return f"chorale:idempotency:{key}"


def api_key_key(key_id: str) -> str:
    return f"chorale:key:{key_id}"


def jobs_of_key(key_id: str) -> str:
    """The index of one API key's jobs; of all jobs where no keys are used."""
    return f"{JOBS_KEY}:{key_id}" if key_id else JOBS_KEY


def session_key(digest: str) -> str:
    return f"chorale:session:{digest}"


def sessions_of_key(key_id: str) -> str:
    """The digests of its sessions, by when they were opened."""
    return f"chorale:sessions:{key_id}"


def ticket_key(digest: str) -> str:
    return f"chorale:ticket:{digest}"


def attempt_key(fingerprint: str) -> str:
    """Token of the latest request of this content that came without an Idempotency-Key."""
    return f"chorale:attempt:{fingerprint}"


INPUTS_FOLDER: Final = "inputs"


def result_folder(job_id: str) -> str:
    """Folder in the object store that holds one folder for each execution."""
    return f"jobs/{job_id}"


STATE_FILE: Final = "state.safetensors"
PYRAMID_FOLDER: Final = "image_files"


def state_key(result: Result) -> str:
    """Key of the final state that a picture was decoded from; pictures of older versions have none."""
    return f"{result.pyramid_key}/{STATE_FILE}"


def checkpoint_folder(job_id: str) -> str:
    return f"checkpoints/{job_id}"


def input_key(job_id: str, part: PicturePart) -> str:
    """Key of a picture that was sent with a request."""
    return f"{INPUTS_FOLDER}/{job_id}/{part}.png"


def job_folders(job_id: str) -> tuple[str, ...]:
    """All folders that a job may have in the object store."""
    return result_folder(job_id), f"{INPUTS_FOLDER}/{job_id}", checkpoint_folder(job_id)


# KEYS: job, events, live, due deliveries, webhooks of the job and of its API key.  ARGV: seq the writer
# folded from, fence token of the writer ("" for the service), token to install ("" to keep), job JSON, event
# JSON, job id, two stream lengths, event type if webhooks may want it, else ""; and, where the event changes what an
# API key uses, the arguments of `count`. No fault of that accounting keeps an event from being written.
# Answers the new stream id, "stale" when another writer came first (read again and retry) or
# "fenced" when a newer attempt owns the job (give up). A key of another type is moved out of the way.
# What is due is written with the event, so that no crash comes between the two.
APPEND_BODY: Final = f"""
for i, wanted in pairs({{[2] = "stream", [3] = "stream", [4] = "zset"}}) do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= wanted then redis.call('RENAME', KEYS[i], '{UNREADABLE_PREFIX}' .. KEYS[i]) end
end
local state = redis.call('HMGET', KEYS[1], 'seq', 'execution')
if ARGV[2] ~= '' and ARGV[3] == '' and state[2] ~= ARGV[2] then return 'fenced' end
if (state[1] or '') ~= ARGV[1] then return 'stale' end
local seq = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'event', ARGV[5], 'version', '{RECORD_VERSION}')
redis.call('HSET', KEYS[1], 'seq', seq, 'job', ARGV[4], 'version', '{RECORD_VERSION}')
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'execution', ARGV[3]) end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*',
  'job', ARGV[6], 'seq', seq, 'prev', ARGV[1], 'event', ARGV[5])
for i, endpoint in ipairs(ARGV[9] ~= "" and {{"job", "key"}} or {{}}) do
  local told = redis.pcall("HMGET", KEYS[4 + i], "events", "disabled")
  if not told.err and told[1] and not told[2] and string.find(told[1] .. " ", ARGV[9] .. " ", 1, true) then
    redis.call("ZADD", KEYS[4], 0, ARGV[6] .. "/" .. ARGV[9] .. "/" .. endpoint)
  end
end
if ARGV[10] then pcall(count, unpack(ARGV, 10, 16)) end
return seq
"""
APPEND_EVENT: Final = COUNT_USAGE + APPEND_BODY

# KEYS: any.  ARGV: the type that each should have.  Moves those of another type out of the way; answers their names.
SET_ASIDE: Final = f"""
local moved = {{}}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= ARGV[i] then
    redis.call('RENAME', key, '{UNREADABLE_PREFIX}' .. key)
    moved[#moved + 1] = key
  end
end
return moved
"""

# KEYS: a set.  ARGV: SADD or SREM, a member.  Answers nil, and changes nothing, if the key is of another type.
CHANGE_SET: Final = """
local answer = redis.pcall(ARGV[1], KEYS[1], ARGV[2])
if type(answer) == 'number' then return 1 end
if not string.find(answer.err, 'WRONGTYPE', 1, true) then return answer end
"""

RECORD: Final = ("job", "seq", "version")
_SEQ = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}")
_job = TypeAdapter(Job)


def read_job(job_id: str, record: Sequence[bytes | None]) -> Job | None:
    """The state of a job, from the fields RECORD of its hash; None if there is no such job.

    Raises:
        UnreadableRecordError: the record is damaged, of a later version, or of another job.
    """
    body, seq, version = record
    if body is None and seq is None:
        return None
    if body is None or seq is None or not _SEQ.fullmatch(seq):
        raise UnreadableRecordError("the record is not whole")
    job = read_stored(_job, body, version)
    if job.id != job_id:
        raise UnreadableRecordError(f"it is the record of a job {job.id[:64]!a}")
    return job.model_copy(update={"seq": seq.decode()})


def read_id(member: bytes) -> str | None:
    """The id of a job, as an index has it; None if this cannot be one."""
    return member.decode() if member.isascii() and member.isalnum() else None


def waiting_types(queue: str) -> dict[str, str]:
    """The keys of the jobs that wait for a place in this queue, in the order of the scripts in waiting.py, and their types."""
    types = {"waiting": "zset", "turns": "zset", "served": "zset", "limits": "hash", "sizes": "hash"}
    return {f"chorale:{name}:{queue}": kind for name, kind in types.items()}


def index_types(queues: Iterable[str]) -> dict[str, str]:
    """The type of every key that is no single record, and of those that RQ has for these queues."""
    types = {
        JOBS_KEY: "zset", ACTIVE_KEY: "set", DEADLINES_KEY: "zset", LIVE_KEY: "stream", MODELS_KEY: "hash", WORKERS_KEY: "set",
        PAUSED_KEY: "set", USAGE_KEY: "set", "rq:queues": "set", "rq:workers": "set",
        DUE_KEY: "zset", WEBHOOK_WORKERS_KEY: "zset", OUTCOMES_KEY: "hash",
    }  # fmt: skip
    for queue in queues:
        types |= {f"rq:queue:{queue}": "list", f"rq:queue:{queue}:intermediate": "list"}
        types |= {f"rq:{name}:{queue}": "zset" for name in ("wip", "finished", "failed", "deferred", "ready")}
        types[f"rq:workers:{queue}"] = "set"
        types |= waiting_types(queue)
    return types


def append_event(
    job: Job, event: DurableEvent, *, after: str, holder: str = "", install: str = ""
) -> tuple[list[str], list[str | int | float]]:
    """KEYS and ARGV of the script.

    Args:
        job: the state after `event`.
        after: `seq` of the state before it, "" for the first event.
        holder: fence token of the writer, "" for the service.
        install: token that owns the job from now on, "" for no change.
    """
    webhooks = [
        webhook_key(endpoint, owner) for endpoint, owner in zip(ENDPOINTS, (job.id, job.key_id), strict=True)
    ]
    keys = [job_key(job.id), events_key(job.id), LIVE_KEY, DUE_KEY, *webhooks]
    record, text = job.model_dump_json(exclude={"seq"}), event.model_dump_json()
    told = event.type if event.type in ALL_EVENTS else ""
    counted = count_arguments(job) if changes_usage(event, job) else []
    return keys, [after, holder, install, record, text, job.id, EVENTS_MAXLEN, LIVE_MAXLEN, told, *counted]
