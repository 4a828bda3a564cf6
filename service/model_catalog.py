"""The models that workers have announced, and the workers that are alive."""

from collections.abc import Awaitable
from typing import cast

from redis.asyncio import Redis

from api_schemas.catalog import ModelCard
from api_schemas.wire import MODELS_KEY, WORKER_KEY_PREFIX, WORKERS_KEY


class ModelCatalog:
    """Cards outlive their worker: a job for a model waits until one that serves it comes back."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def list_cards(self) -> list[ModelCard]:
        """All cards, the default model first, then by name."""
        bodies = await cast(Awaitable[list[bytes]], self._redis.hvals(MODELS_KEY))
        cards = [ModelCard.model_validate_json(body) for body in bodies]
        return sorted(cards, key=lambda card: (not card.is_default, card.name))

    async def list_workers(self) -> list[str]:
        """Names of the workers whose heartbeat is fresh."""
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(WORKERS_KEY))
        names = sorted(member.decode() for member in members)
        beats = await self._redis.mget([WORKER_KEY_PREFIX + name for name in names]) if names else []
        alive = [name for name, beat in zip(names, beats, strict=True) if beat is not None]
        if len(alive) < len(names):
            await self._redis.srem(WORKERS_KEY, *(set(names) - set(alive)))
        return alive
