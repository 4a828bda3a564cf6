"""The models that workers have published, and the workers with a fresh heartbeat."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

from redis.asyncio import Redis

from api_schemas.catalog import ModelCard
from api_schemas.wire import MODELS_KEY, TROUBLE_KEY_PREFIX, WORKER_KEY_PREFIX, WORKERS_KEY

_RECENT_S: Final = 1.0
# KEYS: workers, models.  ARGV: prefix of heartbeats.  Answers bodies of cards, workers' names, and their heartbeats.
_READ: Final = """
local names = redis.call('SMEMBERS', KEYS[1])
local beats = {}
for number, name in ipairs(names) do beats[number] = redis.call('GET', ARGV[1] .. name) end
return {redis.call('HVALS', KEYS[2]), names, beats}
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

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script = redis.register_script(_READ)
        self._recent = Offer([], {})
        self._read_at = float("-inf")

    async def read(self) -> Offer:
        """All cards and workers, in one call.

        A model without workers is the default only while no model has any: otherwise a request that
        names no model would wait for workers that may never return.
        """
        answer = await self._script(keys=[WORKERS_KEY, MODELS_KEY], args=[WORKER_KEY_PREFIX])
        bodies, names, beats = cast(tuple[list[bytes], list[bytes], list[bytes | None]], answer)
        workers = {
            name.decode(): beat.decode() for name, beat in sorted(zip(names, beats, strict=True)) if beat
        }
        if len(workers) < len(names):
            await self._redis.srem(WORKERS_KEY, *(set(names) - {name.encode() for name in workers}))
        self._recent, self._read_at = (
            Offer(_arrange(bodies, set(workers.values())), workers),
            time.monotonic(),
        )
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

    async def list_troubles(self, workers: Iterable[str]) -> dict[str, str]:
        """Messages of those of these workers that lost a device."""
        names = list(workers)
        keys = [TROUBLE_KEY_PREFIX + name for name in names]
        said = cast(list[bytes | None], await self._redis.mget(keys) if keys else [])
        return {name: text.decode() for name, text in zip(names, said, strict=True) if text is not None}


def _arrange(bodies: Iterable[bytes], served: set[str]) -> list[ModelCard]:
    cards = [_read_card(body) for body in bodies]
    cards.sort(key=lambda card: (card.name not in served, not card.is_default, card.name))
    return [card.model_copy(update={"is_default": number == 0}) for number, card in enumerate(cards)]


@lru_cache(maxsize=256)
def _read_card(body: bytes) -> ModelCard:
    """Cards are the same for as long as a worker runs, and reading them is most of what a catalog costs."""
    return ModelCard.model_validate_json(body)
