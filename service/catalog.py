"""The models that workers have published, and the workers with a fresh heartbeat."""

from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from api_schemas.catalog import ModelCard
from api_schemas.wire import (
    CONNECTED_KEY_PREFIX,
    MODELS_KEY,
    PAUSED_KEY,
    PAUSED_KEY_PREFIX,
    PROBE_KEY,
    TROUBLE_KEY_PREFIX,
    WORKER_KEY_PREFIX,
    WORKERS_KEY,
)

_PROBE_S: Final = 60


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
            await self._forget(WORKERS_KEY, set(names) - set(alive))
        return alive

    async def list_connected(self) -> dict[str, str]:
        """The same without those whose connection has ended: they were killed, and their heartbeat outlives them.

        Only of workers that have found themselves in the queue server's list of connections can this be said.
        """
        alive = await self.list_workers()
        keys = [CONNECTED_KEY_PREFIX + name for name in alive]
        marks = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        visible = {name for name, mark in zip(alive, marks, strict=True) if mark is not None}
        connected = await self._list_connections() if visible else None
        if connected is None:
            return alive
        return {name: model for name, model in alive.items() if name in connected or name not in visible}

    async def list_paused(self) -> dict[str, str]:
        """Workers that take no jobs, each with `code: message`."""
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(PAUSED_KEY))
        names = sorted(member.decode() for member in members)
        said = cast(
            list[bytes | None],
            await self._redis.mget([PAUSED_KEY_PREFIX + name for name in names]) if names else [],
        )
        paused = {name: text.decode() for name, text in zip(names, said, strict=True) if text is not None}
        if len(paused) < len(names):
            await self._forget(PAUSED_KEY, set(names) - set(paused))
        return paused

    async def probe(self) -> None:
        """Write to the queue server; raises what it raises. It answers PING while its memory is full."""
        await self._redis.set(PROBE_KEY, "1", ex=_PROBE_S)

    async def list_troubles(self, workers: Iterable[str]) -> dict[str, str]:
        """Messages of those of these workers that lost a device."""
        names = list(workers)
        keys = [TROUBLE_KEY_PREFIX + name for name in names]
        said = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        return {name: text.decode() for name, text in zip(names, said, strict=True) if text is not None}

    async def _list_connections(self) -> set[str] | None:
        """Names of all connections; None where the server does not tell."""
        try:
            clients = await self._redis.client_list()  # pyright: ignore[reportUnknownMemberType]
        except ResponseError:
            return None
        return {client.get("name", "") for client in clients}

    async def _forget(self, key: str, names: set[str]) -> None:
        """Shorten a list; a server that refuses to write has it longer for a while."""
        with suppress(ResponseError):
            await self._redis.srem(key, *names)

    async def count_workers(self, model: str) -> int:
        """Number of workers that serve this model."""
        return list((await self.list_workers()).values()).count(model)
