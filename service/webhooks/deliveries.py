"""Deliveries that are due, and the log of what became of each."""

import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from typing import Final, Literal, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.stored import UnreadableRecordError, read_stored
from api_schemas.webhook import (
    DUE_KEY,
    OUTCOMES_KEY,
    WEBHOOK_WORKERS_KEY,
    Delivery,
    DeliveryAttempt,
    Outcome,
    deliveries_key,
    webhook_key,
)
from api_schemas.wire import job_key
from service.errors import WebhookNotFoundError
from service.unreadable import UnreadableRecords, require_wrong_type
from service.webhooks.notice import Notice, list_notices

WORKER_FRESH_S: Final = 30  # longer than a delivery, for which a worker may have to wait
_MAX_ATTEMPTS_KEPT: Final = 20
_PAGE: Final = 500
# KEYS: due.  ARGV: member, score that the caller knows, new one ("" removes).  Answers whether it was as known.
_MOVE: Final = """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '' then redis.call('ZREM', KEYS[1], ARGV[1]) else redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1]) end
return 1
"""
# KEYS: due, deliveries of the job, outcomes, job.  ARGV: as above, name of the delivery, its record, outcome.
_FINISH: Final = f"""
if redis.call('EXISTS', KEYS[4]) == 0 then return redis.call('ZREM', KEYS[1], ARGV[1]) end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and kind ~= 'hash' then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
redis.pcall('HINCRBY', KEYS[3], ARGV[6], 1)
{_MOVE}
"""
# KEYS: a webhook.  ARGV: now; events before, of which it was not told, it is not told later.
_ENABLE: Final = """
if redis.call('HDEL', KEYS[1], 'disabled') == 1 then redis.call('HSET', KEYS[1], 'set_at', ARGV[1]) end
"""
# KEYS: due, deliveries of the job.  ARGV: member, name of the delivery.
_RESTORE: Final = """
local stored = redis.pcall('HGET', KEYS[2], ARGV[2])
local readable, record = pcall(cjson.decode, stored)
if readable and record.outcome ~= '' then return 0 end
return redis.call('ZADD', KEYS[1], 'NX', 0, ARGV[1])
"""


class Record(BaseModel):
    """What became of a delivery.

    Args:
        tries: attempts since it was asked for; zero again once it has an outcome.
        outcome: the last one; "" while it is tried.
    """

    model_config = ConfigDict(frozen=True)

    attempts: list[DeliveryAttempt] = []
    tries: int = 0
    outcome: Literal["", "delivered", "given_up", "disabled"] = ""

    def add(self, attempt: DeliveryAttempt | None, outcome: Outcome) -> "Record":
        """After one more attempt, or none because the endpoint is disabled."""
        attempts = [*self.attempts, attempt][-_MAX_ATTEMPTS_KEPT:] if attempt else self.attempts
        if outcome == "failed":
            return Record(attempts=attempts, tries=self.tries + 1)
        return Record(attempts=attempts, outcome=outcome)


_record = TypeAdapter(Record)
_STATUS: Final[dict[str, Literal["delivered", "failed", "disabled"]]] = {
    "delivered": "delivered",
    "disabled": "disabled",
}


class Deliveries:
    """What is due has its place in time: a worker that takes one moves it on, so that a killed one loses none."""

    def __init__(self, redis: Redis, unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self._unreadable = unreadable

    async def list(self, job_id: str) -> list[Delivery]:
        """All of a job, those that wait for their first attempt too."""
        notices = list_notices(job_id)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(deliveries_key(job_id))
            pipeline.zmscore(DUE_KEY, [notice.member for notice in notices])  # pyright: ignore[reportUnknownMemberType]
            answers = cast(list[object], await pipeline.execute(raise_on_error=False))
        stored = cast(dict[bytes, bytes], self._require(answers[0], deliveries_key(job_id)) or {})
        due = cast(list[float | None], self._require(answers[1], DUE_KEY) or [None] * len(notices))
        shown = (
            self._show(notice, stored.get(notice.name.encode()), due_ms)
            for notice, due_ms in zip(notices, due, strict=True)
        )
        return [each for each in shown if each is not None]

    async def redeliver(self, job_id: str, key_id: str, delivery_id: str) -> Delivery:
        """Send one again, now, with its id; its endpoint gets events again, if it was disabled.

        Raises:
            WebhookNotFoundError: the job has no such delivery, or its endpoint was removed.
        """
        known = {each.id: each for each in await self.list(job_id)}
        if delivery_id not in known:
            raise WebhookNotFoundError(f"job {job_id} has no delivery {delivery_id[:64]!a}")
        chosen = next(notice for notice in list_notices(job_id) if notice.id == delivery_id)
        if not await self._redis.exists(webhook_key(chosen.endpoint, find_owner(chosen, key_id))):
            raise WebhookNotFoundError(f"the webhook of delivery {delivery_id} was removed")
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.eval(
                _ENABLE, 1, webhook_key(chosen.endpoint, find_owner(chosen, key_id)), time.time()
            )
            transaction.zadd(DUE_KEY, {chosen.member: 0})
            await transaction.execute()
        return known[delivery_id].model_copy(update={"status": "waiting", "next_attempt_at": time.time()})

    async def drop(self, notices: Iterable[Notice]) -> None:
        """Let these wait no longer; those without an outcome have the one of a disabled endpoint."""
        for notice in notices:
            score = await self._redis.zscore(DUE_KEY, notice.member)
            if score is not None:
                known = await self.read(notice)
                await self.finish(notice, known.add(None, "disabled"), "disabled", int(score), None)

    async def find_due(self) -> AsyncIterator[Sequence[Notice]]:
        """All that wait, some at a time."""
        cursor = -1
        while cursor:
            found = self._redis.zscan(DUE_KEY, max(0, cursor), count=_PAGE)  # pyright: ignore[reportUnknownMemberType]
            cursor, rows = cast(tuple[int, Sequence[tuple[bytes, float]]], await found)
            members = [member.decode(errors="replace") for member, _ in rows]
            yield [notice for member in members if (notice := _read_notice(member)) is not None]

    async def read(self, notice: Notice) -> Record:
        """What is known of a delivery; one that cannot be read begins again."""
        key = deliveries_key(notice.job_id)
        try:
            stored = await cast(Awaitable[bytes | None], self._redis.hget(key, notice.name))
        except RedisError as error:
            require_wrong_type(error)
            self._unreadable.tell("delivery", key, error)
            stored = None
        return self._read(notice, stored)

    async def move(self, notice: Notice, from_ms: int, to_ms: int | None) -> bool:
        """Move it in time, or away, unless it has been moved since; False if it has."""
        arguments = notice.member, from_ms, "" if to_ms is None else to_ms
        return bool(await cast(Awaitable[int], self._redis.eval(_MOVE, 1, DUE_KEY, *arguments)))

    async def finish(
        self, notice: Notice, record: Record, outcome: Outcome, from_ms: int, to_ms: int | None
    ) -> None:
        """Record an attempt and move it in time, or away; if it was asked for again meanwhile, it stays due."""
        keys = DUE_KEY, deliveries_key(notice.job_id), OUTCOMES_KEY, job_key(notice.job_id)
        arguments = (
            notice.member,
            from_ms,
            "" if to_ms is None else to_ms,
            notice.name,
            record.model_dump_json(),
        )
        await cast(Awaitable[int], self._redis.eval(_FINISH, len(keys), *keys, *arguments, outcome))

    async def restore(self, notice: Notice) -> None:
        """Make it due, unless it is, or has an outcome."""
        keys = DUE_KEY, deliveries_key(notice.job_id)
        await cast(Awaitable[int], self._redis.eval(_RESTORE, len(keys), *keys, notice.member, notice.name))

    async def measure(self) -> tuple[int, int, dict[str, int]]:
        """How many wait, how many processes deliver, and what became of all attempts so far."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zcard(DUE_KEY)
            pipeline.zcount(WEBHOOK_WORKERS_KEY, time.time() - WORKER_FRESH_S, "+inf")
            pipeline.hgetall(OUTCOMES_KEY)
            waiting, workers, outcomes = cast(list[object], await pipeline.execute(raise_on_error=False))
        counts = cast(dict[bytes, bytes], self._require(outcomes, OUTCOMES_KEY) or {})
        return (
            cast(int, self._require(waiting, DUE_KEY) or 0),
            cast(int, self._require(workers, WEBHOOK_WORKERS_KEY) or 0),
            {name.decode(errors="replace"): int(count) for name, count in counts.items() if count.isdigit()},
        )

    def _show(self, notice: Notice, stored: bytes | None, due_ms: float | None) -> Delivery | None:
        if stored is None and due_ms is None:
            return None
        record = self._read(notice, stored)
        ended = _STATUS.get(record.outcome, "failed")
        return Delivery(
            id=notice.id,
            event=notice.event,
            endpoint=notice.endpoint,
            status=ended if due_ms is None else "waiting",
            next_attempt_at=None if due_ms is None else due_ms / 1000 or time.time(),
            attempts=record.attempts,
        )

    def _read(self, notice: Notice, stored: bytes | None) -> Record:
        try:
            return Record() if stored is None else read_stored(_record, stored)
        except UnreadableRecordError as error:
            self._unreadable.tell("delivery", deliveries_key(notice.job_id), error)
            return Record()

    def _require(self, answer: object, key: str) -> object | None:
        """None for a key of another type."""
        if isinstance(answer, Exception):
            require_wrong_type(answer)
            self._unreadable.tell("index", key, answer)
            return None
        return answer


def _read_notice(member: str) -> Notice | None:
    try:
        return Notice.read(member)
    except ValueError:
        return None


def find_owner(notice: Notice, key_id: str) -> str:
    """Whose webhook it is for."""
    return notice.job_id if notice.endpoint == "job" else key_id
