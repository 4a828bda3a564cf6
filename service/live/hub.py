"""One reader of the live stream for the whole process, however many clients are watching."""

import asyncio
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Set
from contextlib import contextmanager
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from api_schemas.preview_frames import pack_batch
from api_schemas.wire import LIVE_KEY
from service.job_meter import JobMeter
from service.live.subscription import Subscription
from service.messages import EventMessage, read_event
from service.metrics import Metrics
from service.throughput import Throughput
from service.unreadable import UnreadableRecords

_GATHER_S: Final = 0.01  # a step and its previews come one after another, and wake each viewer once
_REST_S: Final = 0.04
_BLOCK_MS: Final = 1000
_COUNT: Final = 2000
_RETRY_S: Final = 0.5
# A stalled reader holds one message beside its buffer, and common clients reject more than 1 MiB.
MAX_BATCH_BYTES: Final = 256 * 1024

Row = tuple[bytes, dict[bytes, bytes]]
log = logging.getLogger(__name__)


class LiveHub:
    """Hands each entry of the live stream to the subscriptions of its job, in batches, at most one each 50 ms."""

    def __init__(
        self, redis: Redis, metrics: Metrics, throughput: Throughput, unreadable: UnreadableRecords
    ) -> None:
        self._redis = redis
        self._metrics = metrics
        self._throughput = throughput
        self._unreadable = unreadable
        self._meter = JobMeter(metrics)
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._closed = False

    @contextmanager
    def subscribe(
        self, job_id: str, *, previews: bool, holder: tuple[str, str] | None = None
    ) -> Generator[Subscription]:
        """A subscription to a job, until the end of the `with` block."""
        subscription = Subscription(previews=previews, holder=holder)
        if self._closed:
            subscription.close()
        self._subscriptions.setdefault(job_id, set()).add(subscription)
        self._metrics.live_readers.inc()
        try:
            yield subscription
        finally:
            self._metrics.live_readers.dec()
            self._subscriptions[job_id].discard(subscription)
            if not self._subscriptions[job_id]:
                del self._subscriptions[job_id]

    def close(self) -> None:
        """End all subscriptions, so that the server can stop without waiting for its clients."""
        self._closed = True
        for subscription in self._all():
            subscription.close()

    def list_holders(self) -> set[tuple[str, str]]:
        """Of all API keys by which subscriptions were opened."""
        return {each.holder for each in self._all() if each.holder is not None}

    def release(self, holders: Set[tuple[str, str]]) -> None:
        """End the subscriptions of these."""
        for subscription in self._all():
            if subscription.holder in holders:
                subscription.close()

    async def run(self) -> None:
        """Read until cancelled. While Redis is unreachable, clients wait."""
        while True:
            try:
                await self._follow()
            except (RedisError, OSError) as error:
                log.warning("the live stream cannot be read: %s", error)
            await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        position = await self._tip()
        # Earlier events are only in the logs.
        self._mark_behind()
        while True:
            rows = await self._read(position)
            if rows:
                position = rows[-1][0]
                self._deliver(rows)
                await asyncio.sleep(_REST_S)

    async def _tip(self) -> bytes:
        try:
            return cast(dict[str, bytes], await self._redis.xinfo_stream(LIVE_KEY))["last-generated-id"]
        except ResponseError:  # nothing was ever written
            return b"0-0"

    async def _read(self, position: bytes) -> list[Row]:
        rows = await self._take(position, _BLOCK_MS)
        if rows:
            await asyncio.sleep(_GATHER_S)
            rows += await self._take(rows[-1][0], None)
        return rows

    async def _take(self, position: bytes, block_ms: int | None) -> list[Row]:
        answer = cast(
            list[tuple[bytes, list[Row]]],
            await self._redis.xread({LIVE_KEY: position}, count=_COUNT, block=block_ms),
        )
        return answer[0][1] if answer else []

    def _deliver(self, rows: list[Row]) -> None:
        if len(rows) >= _COUNT:  # so far back that the short stream may have been trimmed before us
            self._mark_behind()
        events: dict[str, list[EventMessage]] = {}
        frames: dict[str, list[bytes]] = {}
        for entry, fields in rows:
            try:
                self._sort(fields, events, frames)
            except (KeyError, ValueError) as error:
                # Readers find that an event is missing, and look into the log.
                self._unreadable.tell("event", fields.get(b"job", entry), repr(error))
        self._fan_out_previews(frames)
        self._fan_out_events(events)
        self._metrics.live_lag_s.observe(max(0.0, time.time() - int(rows[0][0].split(b"-")[0]) / 1000))

    def _sort(
        self,
        fields: dict[bytes, bytes],
        events: dict[str, list[EventMessage]],
        frames: dict[str, list[bytes]],
    ) -> None:
        job_id = fields[b"job"].decode()
        if b"frame" not in fields:
            events.setdefault(job_id, []).append(_read_live(fields))
        elif job_id in self._subscriptions:
            frames.setdefault(job_id, []).append(fields[b"frame"])

    def _fan_out_previews(self, frames: dict[str, list[bytes]]) -> None:
        for job_id, job_frames in frames.items():
            batches = list(join_frames(job_frames))
            for subscription in self._subscriptions.get(job_id, ()):
                if subscription.wants_previews:
                    self._metrics.previews_dropped.inc(subscription.put_previews(batches))

    def _fan_out_events(self, events: dict[str, list[EventMessage]]) -> None:
        for job_id, job_events in events.items():
            for event in job_events:
                self._throughput.observe(event)
                self._meter.observe(event)
            for subscription in self._subscriptions.get(job_id, ()):
                subscription.put_events(job_events)

    def _mark_behind(self) -> None:
        for subscription in self._all():
            subscription.fall_behind()

    def _all(self) -> Iterable[Subscription]:
        return [each for group in self._subscriptions.values() for each in group]


def join_frames(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Binary messages of at most `MAX_BATCH_BYTES`, or of a single larger frame."""
    batch: list[bytes] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) > MAX_BATCH_BYTES:
            yield pack_batch(batch)
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    if batch:
        yield pack_batch(batch)


def _read_live(fields: dict[bytes, bytes]) -> EventMessage:
    return read_event(fields[b"seq"].decode(), fields[b"event"], fields[b"prev"].decode())
