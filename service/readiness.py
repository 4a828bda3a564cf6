"""Whether a job posted now would run: each part has a check of its own."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError

from api_schemas.answers import PartReadiness, Reach, Readiness
from service.dependencies import Services
from service.outages import explain_queue, explain_store

_TIMEOUT_S: Final = 3.0
_NOT_FOR_JOBS: Final = ("webhooks",)  # without which they run all the same
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: an empty message if nothing is wrong."""

    message: str = ""
    reach: Reach = "ok"


async def examine(services: Services) -> Readiness:
    """All parts, at the same time."""
    workers = _WorkerCheck(services)
    checks: dict[str, Callable[[], Awaitable[Finding]]] = {
        "queue": lambda: _check_queue(services),
        "store": lambda: _check_store(services),
        "disk": lambda: _check_disk(services),
        "workers": workers.run,
        "webhooks": lambda: _check_webhooks(services),
    }
    found = dict(zip(checks, await asyncio.gather(*map(_limit, checks.values())), strict=True))
    return Readiness(
        ready=not any(finding.message for part, finding in found.items() if part not in _NOT_FOR_JOBS),
        queue=found["queue"].reach,
        store=found["store"].reach,
        workers=list(workers.alive),
        models=sorted(set(workers.alive.values())),
        degraded=workers.degraded,
        paused=workers.paused,
        parts=[
            PartReadiness(name=part, ready=not finding.message, message=finding.message)
            for part, finding in found.items()
        ],
    )


async def _limit(check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        return await asyncio.wait_for(check(), _TIMEOUT_S)
    except TimeoutError:
        return Finding(f"no answer within {_TIMEOUT_S:g} s", "unreachable")


async def _check_queue(services: Services) -> Finding:
    try:
        await services.catalog.probe()
    except (RedisError, OSError) as error:
        log.warning("not ready: queue: %s", error)
        outage = explain_queue(error)
        return Finding(outage.message, outage.reach)
    return Finding()


async def _check_store(services: Services) -> Finding:
    try:
        await services.images.probe()
    except (StoreError, OSError) as error:
        log.warning("not ready: store: %s", str(error).partition("\n")[0])
        outage = explain_store(error)
        return Finding(outage.message, outage.reach)
    return Finding()


async def _check_disk(services: Services) -> Finding:
    return Finding(await services.space.describe_lack(0))


async def _check_webhooks(services: Services) -> Finding:
    try:
        waiting, workers, _ = await services.deliveries.measure()
    except (RedisError, OSError):
        return Finding("not known without the queue")
    if waiting and not workers:
        return Finding(f"deliveries that wait: {waiting}; nobody makes them: start `chorale webhooks`")
    return Finding()


@dataclass(slots=True)
class _WorkerCheck:
    """Those that are connected; those of them that are paused take no jobs, as do those that have no model yet.

    What a killed one has said is not told beside what its successor says.
    """

    services: Services
    alive: dict[str, str] = field(default_factory=dict[str, str])
    degraded: dict[str, str] = field(default_factory=dict[str, str])
    paused: dict[str, str] = field(default_factory=dict[str, str])

    async def run(self) -> Finding:
        catalog = self.services.catalog
        try:
            self.alive = await catalog.list_connected()
            self.degraded = await catalog.list_troubles(self.alive)
            recent = await catalog.read_recent()
            gone = set(recent.workers) - set(self.alive)
            paused = await catalog.list_paused()
            self.paused = {name: why for name, why in paused.items() if name not in gone}
            announced = {card.name for card in recent.cards}
        except (RedisError, OSError):
            return Finding("not known without the queue")
        working = {self.alive[name] for name in self.alive if name not in self.paused}
        if working & announced:
            return Finding()
        if working:
            return Finding("no worker has announced its model yet")
        if self.paused:
            return Finding("paused: " + "; ".join(sorted(set(self.paused.values()))))
        return Finding("no worker is connected")
