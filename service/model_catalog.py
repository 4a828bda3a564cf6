"""The models that workers have announced, and the workers that are alive."""

from collections.abc import AsyncIterator, Awaitable
from typing import cast

from redis.asyncio import Redis

from api_schemas.catalog import ModelCard
from api_schemas.wire import MODELS_KEY, WORKER_KEY_PREFIX


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
        keys = cast(
            AsyncIterator[bytes],
            self._redis.scan_iter(  # pyright: ignore[reportUnknownMemberType]
                match=f"{WORKER_KEY_PREFIX}*", count=1000
            ),
        )
        return sorted([key.decode().removeprefix(WORKER_KEY_PREFIX) async for key in keys])
