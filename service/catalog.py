"""The models that workers have published, and the workers with a fresh heartbeat."""

from collections.abc import Awaitable, Iterable
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.catalog import ModelCard
from api_schemas.stored import UnreadableRecordError, read_card
from api_schemas.wire import MODELS_KEY, TROUBLE_KEY_PREFIX, WORKER_KEY_PREFIX, WORKERS_KEY
from service.unreadable import UnreadableRecords, require_wrong_type

T = TypeVar("T")


class ModelCatalog:
    """Cards outlive their workers: a job waits until a worker serves its model again."""

    def __init__(self, redis: Redis, unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self._unreadable = unreadable

    async def list_cards(self) -> list[ModelCard]:
        """All cards, the default model first, then those that are served now, then by name.

        A model without workers is the default only while no model has any: otherwise a request that
        names no model would wait for workers that may never return.
        """
        stored = cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(MODELS_KEY))
        bodies = await self._expect(MODELS_KEY, stored) or {}
        cards = [card for name, body in bodies.items() if (card := self._read(name, body)) is not None]
        served = set((await self.list_workers()).values())
        cards.sort(key=lambda card: (card.name not in served, not card.is_default, card.name))
        return [card.model_copy(update={"is_default": card is cards[0]}) for card in cards]

    async def list_workers(self) -> dict[str, str]:
        """Names of the workers whose heartbeat is fresh, each with the model that it serves."""
        stored = cast(Awaitable[set[bytes]], self._redis.smembers(WORKERS_KEY))
        members = await self._expect(WORKERS_KEY, stored) or set[bytes]()
        names = sorted(members)
        keys = [WORKER_KEY_PREFIX.encode() + name for name in names]
        beats = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        alive = {name: beat for name, beat in zip(names, beats, strict=True) if beat is not None}
        if len(alive) < len(names):
            await self._redis.srem(WORKERS_KEY, *(members - set(alive)))
        return dict(filter(None, (self._read_beat(name, beat) for name, beat in alive.items())))

    async def list_troubles(self, workers: Iterable[str]) -> dict[str, str]:
        """Messages of those of these workers that lost a device."""
        names = list(workers)
        keys = [TROUBLE_KEY_PREFIX + name for name in names]
        said = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        return {
            name: text.decode(errors="replace")
            for name, text in zip(names, said, strict=True)
            if text is not None
        }

    async def count_workers(self, model: str) -> int:
        """Number of workers that serve this model."""
        return list((await self.list_workers()).values()).count(model)

    async def _expect(self, key: str, stored: Awaitable[T]) -> T | None:
        """None if the key is of another type, until it is repaired."""
        try:
            return await stored
        except RedisError as error:
            require_wrong_type(error)
            self._unreadable.tell("index", key, error)
            return None

    def _read(self, name: bytes, body: bytes) -> ModelCard | None:
        try:
            return read_card(body)
        except UnreadableRecordError as error:
            self._unreadable.tell("model", name, error)
            return None

    def _read_beat(self, name: bytes, model: bytes) -> tuple[str, str] | None:
        try:
            return name.decode(), model.decode()
        except UnicodeDecodeError as error:
            self._unreadable.tell("heartbeat", name, error)
            return None
