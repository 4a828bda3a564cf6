"""Health, readiness and metrics."""

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
from service.dependencies import BackgroundDep, Services, ServicesDep
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
    """Liveness: the process answers; nothing else is checked."""
    return Health()


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={
        **problems(),
        503: {"model": Readiness, "description": "A part is not available; the body names it."},
    },
)
async def check_readiness(response: Response, services: ServicesDep, background: BackgroundDep) -> Readiness:
    """Readiness: whether a job posted now would run."""
    queue, store = await asyncio.gather(_reach_queue(services), _reach_store(services))
    workers = await services.catalog.list_workers() if queue == "ok" else {}
    ready = queue == store == "ok" and bool(workers)
    if not ready:
        response.status_code = 503
    return Readiness(
        ready=ready,
        queue=queue,
        store=store,
        workers=list(workers),
        models=sorted(set(workers.values())),
        degraded=await services.catalog.list_troubles(workers),
        background=background.list_troubles(),
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {}}}, **problems()},
)
async def show_metrics(services: ServicesDep) -> Response:
    """Prometheus metrics. Answers also while Redis is unreachable."""
    try:
        await _measure_queues(services)
        services.metrics.queue_up.set(1)
    except (RedisError, OSError):
        services.metrics.queue_up.set(0)
    return Response(services.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _measure_queues(services: Services) -> None:
    load = await services.queue.measure()
    alive = await services.catalog.list_workers()
    workers = Counter(alive.values())
    services.metrics.workers_degraded.set(len(await services.catalog.list_troubles(alive)))
    for model in {*load, *workers, *(card.name for card in await services.catalog.list_cards())}:
        line = load.get(model, Load(0, 0))
        services.metrics.jobs_waiting.labels(model).set(line.waiting)
        services.metrics.jobs_running.labels(model).set(line.running)
        services.metrics.workers.labels(model).set(workers[model])


async def _reach_queue(services: Services) -> Reach:
    try:
        await asyncio.wait_for(_ping(services), _TIMEOUT_S)
    except (RedisError, OSError, TimeoutError) as error:
        log.warning("not ready: queue: %s", error)
        return "unreachable"
    return "ok"


async def _reach_store(services: Services) -> Reach:
    try:
        await asyncio.wait_for(services.images.probe(), _TIMEOUT_S)
    except (StoreError, OSError, TimeoutError) as error:
        log.warning("not ready: store: %s", error)
        return "unreachable"
    return "ok"


async def _ping(services: Services) -> None:
    await services.redis.ping()  # pyright: ignore[reportUnknownMemberType]
