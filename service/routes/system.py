"""What operators and their machines ask."""

import asyncio
import logging
from collections import Counter
from typing import Literal

from fastapi import APIRouter, Response
from obstore.exceptions import BaseError as StoreError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from redis.exceptions import RedisError

from api_schemas.answers import Readiness
from service.dependencies import Rooms, Services
from service.job_queue import Load
from service.openapi import problems

_TIMEOUT_S = 3.0
Reach = Literal["ok", "unreachable"]
log = logging.getLogger(__name__)
router = APIRouter(tags=["system"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/healthz", response_model=Health, responses=problems())
async def check_health() -> Health:
    """The process answers; nothing else is looked at."""
    return Health()


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={
        **problems(),
        503: {"model": Readiness, "description": "A part is missing; the body says which."},
    },
)
async def check_readiness(response: Response, rooms: Rooms) -> Readiness:
    """Whether a job posted now would be made."""
    queue, store = await asyncio.gather(_reach_queue(rooms), _reach_store(rooms))
    workers = await rooms.catalog.list_workers() if queue == "ok" else {}
    ready = queue == store == "ok" and bool(workers)
    if not ready:
        response.status_code = 503
    return Readiness(
        ready=ready,
        queue=queue,
        store=store,
        workers=list(workers),
        models=sorted(set(workers.values())),
        degraded=await rooms.catalog.list_troubles(workers),
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {}}}, **problems()},
)
async def show_metrics(rooms: Rooms) -> Response:
    """Counts, times and the state of the queue. Answers also while Redis is away."""
    try:
        await _measure_queues(rooms)
        rooms.metrics.queue_up.set(1)
    except (RedisError, OSError):
        rooms.metrics.queue_up.set(0)
    return Response(rooms.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _measure_queues(rooms: Services) -> None:
    load = await rooms.queue.measure()
    alive = await rooms.catalog.list_workers()
    workers = Counter(alive.values())
    rooms.metrics.workers_degraded.set(len(await rooms.catalog.list_troubles(alive)))
    for model in {*load, *workers, *(card.name for card in await rooms.catalog.list_cards())}:
        line = load.get(model, Load(0, 0))
        rooms.metrics.jobs_waiting.labels(model).set(line.waiting)
        rooms.metrics.jobs_running.labels(model).set(line.running)
        rooms.metrics.workers.labels(model).set(workers[model])


async def _reach_queue(rooms: Services) -> Reach:
    try:
        await asyncio.wait_for(_ping(rooms), _TIMEOUT_S)
    except (RedisError, OSError, TimeoutError) as error:
        log.warning("not ready: queue: %s", error)
        return "unreachable"
    return "ok"


async def _reach_store(rooms: Services) -> Reach:
    try:
        await asyncio.wait_for(rooms.images.probe(), _TIMEOUT_S)
    except (StoreError, OSError, TimeoutError) as error:
        log.warning("not ready: store: %s", error)
        return "unreachable"
    return "ok"


async def _ping(rooms: Services) -> None:
    await rooms.redis.ping()  # pyright: ignore[reportUnknownMemberType]
