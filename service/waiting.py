"""The jobs that wait until a worker has a place for them. Whatever changes them is one script, so that any process may die."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.job import Job
from api_schemas.waiting import (
    ENQUEUE,
    FIND_POSITIONS,
    RELEASE,
    REMOVE,
    name_keys,
    name_member,
    release_arguments,
)
from api_schemas.wire import queue_name
from service.unreadable import require_wrong_type

Limits = Iterable[tuple[str, int | None]]


@dataclass(frozen=True, slots=True)
class WaitingCounts:
    """How many wait for a model.

    Args:
        listed: jobs in RQ's queue, about one for each worker.
        waiting: jobs before it.
        own: those of the API key that asks.
        keys: that have jobs before it, the one that asks included.
    """

    listed: int
    waiting: int
    own: int
    keys: int


class WaitingJobs:
    """Of each model, by API key."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._enqueue = redis.register_script(ENQUEUE)
        self._release = redis.register_script(RELEASE)
        self._remove = redis.register_script(REMOVE)
        self._find_positions = redis.register_script(FIND_POSITIONS)

    async def enqueue(self, job: Job, stored: Mapping[str, bytes | str | int], limit: int | None) -> bool:
        """Add a job, and release the next one if a worker is idle; False if RQ knows the job already.

        Args:
            stored: what RQ keeps of it.
            limit: of its key.
        """
        model, words = job.request.model, [word for field in stored.items() for word in field]
        told = [name_member(job), "" if limit is None else str(limit), *words]
        return bool(await self._enqueue(*_address(model, told)))

    async def release(self, model: str, limits: Limits) -> None:
        """Put the next jobs into RQ's queue, if workers are idle.

        Args:
            limits: of keys that have jobs waiting, as they are now.
        """
        await self._release(
            name_keys(queue_name(model)), release_arguments(model, is_idle=False, limits=limits)
        )

    async def remove(self, model: str, member: str | bytes) -> bool:
        """Remove a job, also what RQ keeps of it; False if it does not wait."""
        return bool(await self._remove(*_address(model, [member])))

    async def count(self, model: str, key_id: str) -> WaitingCounts:
        """As this key finds it; in one round trip, and of what the scripts keep in any case."""
        waiting, turns, *_, listed = name_keys(queue_name(model))
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.llen(listed)
            pipeline.zcard(waiting)
            pipeline.zlexcount(waiting, f"[{key_id}:", f"({key_id};")
            pipeline.zcard(turns)
            placed, waits, own, keys = cast(list[int], await pipeline.execute())
        return WaitingCounts(placed, waits, own, keys if own else keys + 1)

    async def find_positions(self, model: str, jobs: Sequence[Job]) -> list[int | None]:
        """Number of jobs of the model that will start before each of these, None where it is in no queue."""
        try:
            found = await self._find_positions(*_address(model, map(name_member, jobs)))
        except RedisError as error:  # a key of another type has no order until it is repaired
            require_wrong_type(error)
            return [None] * len(jobs)
        return [position if position >= 0 else None for position in cast(list[int], found)]


def _address(model: str, arguments: Iterable[str | bytes | int]) -> tuple[list[str], list[str | bytes | int]]:
    queue = queue_name(model)
    return name_keys(queue), [queue, model, *arguments]
