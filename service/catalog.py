"""The models that workers have published, and the workers with a fresh heartbeat."""

from collections.abc import Awaitable, Iterable
from typing import cast

from redis.asyncio import Redis

from api_schemas.catalog import ModelCard
from api_schemas.wire import MEMORY_KEY_PREFIX, MODELS_KEY, TROUBLE_KEY_PREFIX, WORKER_KEY_PREFIX, WORKERS_KEY


class ModelCatalog:
    """Cards outlive their workers: a job waits until a worker serves its model again."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def list_cards(self) -> list[ModelCard]:
        """All cards, the default model first, then those that are served now, then by name.

        A model without workers is the default only while no model has any: otherwise a request that
        names no model would wait for workers that may never return.
        """
        bodies = await cast(Awaitable[list[bytes]], self._redis.hvals(MODELS_KEY))
        cards = [ModelCard.model_validate_json(body) for body in bodies]
        served = set((await self.list_workers()).values())
        cards.sort(key=lambda card: (card.name not in served, not card.is_default, card.name))
        return [card.model_copy(update={"is_default": card is cards[0]}) for card in cards]

    async def list_workers(self) -> dict[str, str]:
        """Names of the workers whose heartbeat is fresh, each with the model that it serves."""
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(WORKERS_KEY))
        names = sorted(member.decode() for member in members)
        beats = cast(
            list[bytes | None],
            await self._redis.mget([WORKER_KEY_PREFIX + name for name in names]) if names else [],
        )
        alive = {name: beat.decode() for name, beat in zip(names, beats, strict=True) if beat is not None}
        if len(alive) < len(names):
            await self._redis.srem(WORKERS_KEY, *(set(names) - set(alive)))
        return alive

    async def list_troubles(self, workers: Iterable[str]) -> dict[str, str]:
        """Messages of those of these workers that lost a device."""
        names = list(workers)
        keys = [TROUBLE_KEY_PREFIX + name for name in names]
        said = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        return {name: text.decode() for name, text in zip(names, said, strict=True) if text is not None}

    async def list_memory(self, workers: Iterable[str]) -> dict[str, int]:
        """Main memory of those of these workers that tell it, in bytes."""
        names = list(workers)
        keys = [MEMORY_KEY_PREFIX + name for name in names]
        told = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        return {name: int(size) for name, size in zip(names, told, strict=True) if size is not None}

    async def count_workers(self, model: str) -> int:
        """Number of workers that serve this model."""
        return list((await self.list_workers()).values()).count(model)
