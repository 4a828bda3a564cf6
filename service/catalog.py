"""The models that workers have published, and the workers with a fresh heartbeat."""

import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from api_schemas.catalog import ModelCard
from api_schemas.stored import UnreadableRecordError, read_card
from api_schemas.wire import (
    CONNECTED_KEY_PREFIX,
    MEMORY_KEY_PREFIX,
    MODELS_KEY,
    PAUSED_KEY,
    PAUSED_KEY_PREFIX,
    PROBE_KEY,
    TROUBLE_KEY_PREFIX,
    WORKER_KEY_PREFIX,
    WORKERS_KEY,
)
from service.unreadable import UnreadableRecords, require_wrong_type

T = TypeVar("T")
_PROBE_S: Final = 60
_RECENT_S: Final = 1.0
# KEYS: workers, models.  ARGV: prefix of heartbeats.  Answers names of workers, their heartbeats, names and bodies
# of cards in turn, and those of the keys that are of another type and cannot be read.
_READ: Final = """
local wrong = {}
local function read(command, key)
  local answer = redis.pcall(command, key)
  if type(answer) == 'table' and answer.err then wrong[#wrong + 1] = key; return {} end
  return answer
end
local names, beats = read('SMEMBERS', KEYS[1]), {}
for number, name in ipairs(names) do
  local beat = redis.pcall('GET', ARGV[1] .. name)
  beats[number] = type(beat) == 'string' and beat
end
return {names, beats, read('HGETALL', KEYS[2]), wrong}
"""


@dataclass(frozen=True, slots=True)
class Offer:
    """What is served at one moment.

    Args:
        cards: the default model first, then those that are served, then by name.
        workers: names of the workers whose heartbeat is fresh, each with the model that it serves.
    """

    cards: list[ModelCard]
    workers: dict[str, str]

    def find(self, model: str) -> ModelCard | None:
        return next((card for card in self.cards if card.name == model), None)

    def count_workers(self, model: str) -> int:
        """Number of workers that serve this model."""
        return list(self.workers.values()).count(model)


class ModelCatalog:
    """Cards outlive their workers: a job waits until a worker serves its model again."""

    def __init__(self, redis: Redis, unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self._unreadable = unreadable
        self._script = redis.register_script(_READ)
        self._recent = Offer([], {})
        self._read_at = float("-inf")

    async def read(self) -> Offer:
        """All cards and workers, in one call; what cannot be read of them is left out.

        A model without workers is the default only while no model has any: otherwise a request that
        names no model would wait for workers that may never return.
        """
        answer = await self._script(keys=[WORKERS_KEY, MODELS_KEY], args=[WORKER_KEY_PREFIX])
        names, beats, stored, wrong = cast(
            tuple[list[bytes], list[bytes | None], list[bytes], list[bytes]], answer
        )
        for key in wrong:
            self._unreadable.tell("index", key, "it is of another type")
        alive = {name: beat for name, beat in sorted(zip(names, beats, strict=True)) if beat}
        if len(alive) < len(names):
            await self._forget(WORKERS_KEY, set(names) - set(alive))
        workers = dict(filter(None, (self._read_beat(name, beat) for name, beat in alive.items())))
        bodies = dict(zip(stored[::2], stored[1::2], strict=True))
        cards = [card for name, body in bodies.items() if (card := self._read(name, body)) is not None]
        self._recent, self._read_at = Offer(_arrange(cards, set(workers.values())), workers), time.monotonic()
        return self._recent

    async def read_recent(self) -> Offer:
        """The same, up to a second old: enough for an estimate, which every read of a queued job needs."""
        return self._recent if time.monotonic() - self._read_at < _RECENT_S else await self.read()

    async def list_cards(self) -> list[ModelCard]:
        """All cards, in the order of an offer."""
        return (await self.read()).cards

    async def list_workers(self) -> dict[str, str]:
        """Names of the workers whose heartbeat is fresh, each with the model that it serves."""
        return (await self.read()).workers

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
        stored = cast(Awaitable[set[bytes]], self._redis.smembers(PAUSED_KEY))
        members = await self._expect(PAUSED_KEY, stored) or set[bytes]()
        names = sorted(members)
        keys = [PAUSED_KEY_PREFIX.encode() + name for name in names]
        said = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        paused = {name: text for name, text in zip(names, said, strict=True) if text is not None}
        if len(paused) < len(names):
            await self._forget(PAUSED_KEY, members - set(paused))
        return {name.decode(errors="replace"): text.decode(errors="replace") for name, text in paused.items()}

    async def probe(self) -> None:
        """Write to the queue server; raises what it raises. It answers PING while its memory is full."""
        await self._redis.set(PROBE_KEY, "1", ex=_PROBE_S)

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

    async def _list_connections(self) -> set[str] | None:
        """Names of all connections; None where the server does not tell."""
        try:
            clients = await self._redis.client_list()  # pyright: ignore[reportUnknownMemberType]
        except ResponseError:
            return None
        return {client.get("name", "") for client in clients}

    async def _forget(self, key: str, names: set[bytes]) -> None:
        """Shorten a list; a server that refuses to write has it longer for a while."""
        with suppress(ResponseError):
            await self._redis.srem(key, *names)

    async def list_memory(self, workers: Iterable[str]) -> dict[str, int]:
        """Main memory of those of these workers that tell it, in bytes."""
        names = list(workers)
        keys = [MEMORY_KEY_PREFIX + name for name in names]
        told = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        return {name: int(size) for name, size in zip(names, told, strict=True) if size and size.isdigit()}

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
            return _read_card(body)
        except UnreadableRecordError as error:
            self._unreadable.tell("model", name, error)
            return None

    def _read_beat(self, name: bytes, model: bytes) -> tuple[str, str] | None:
        try:
            return name.decode(), model.decode()
        except UnicodeDecodeError as error:
            self._unreadable.tell("heartbeat", name, error)
            return None


def _arrange(cards: list[ModelCard], served: set[str]) -> list[ModelCard]:
    cards.sort(key=lambda card: (card.name not in served, not card.is_default, card.name))
    return [card.model_copy(update={"is_default": number == 0}) for number, card in enumerate(cards)]


@lru_cache(maxsize=256)
def _read_card(body: bytes) -> ModelCard:
    """Cards are the same for as long as a worker runs, and reading them is most of what a catalog costs."""
    return read_card(body)
