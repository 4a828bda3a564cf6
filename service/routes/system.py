"""Health, readiness and metrics."""

from collections import Counter
from contextlib import suppress
from math import nan
from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from redis.exceptions import RedisError

from api_schemas.answers import Readiness
from service.dependencies import BackgroundDep, Services, ServicesDep
from service.keys.caller import is_operator
from service.openapi import problems
from service.readiness import examine
from service.rq_queues import Load

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
async def check_readiness(
    request: Request, response: Response, services: ServicesDep, background: BackgroundDep
) -> Readiness:
    """Readiness: whether a job posted now would run. Where keys are required, only one with the scope admin is told why."""
    readiness = await examine(services)
    if not readiness.ready:
        response.status_code = 503
    if not is_operator(request):
        return Readiness(
            ready=readiness.ready, queue=readiness.queue, store=readiness.store, workers=[], models=[]
        )
    return readiness.model_copy(update={"background": background.list_troubles()})


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
    await _measure_webhooks(services)
    services.metrics.queue_writable.set(await _is_queue_writable(services))
    free = await services.space.measure()
    services.metrics.store_free_bytes.set(nan if free is None else free)
    return Response(services.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _measure_queues(services: Services) -> None:
    load = await services.queue.measure()
    alive = await services.catalog.list_workers()
    workers = Counter(alive.values())
    services.metrics.workers_degraded.set(len(await services.catalog.list_troubles(alive)))
    services.metrics.count_paused((await services.catalog.list_paused()).values())
    services.metrics.worker_memory.clear()
    for name, size in (await services.catalog.list_memory(alive)).items():
        services.metrics.worker_memory.labels(name).set(size)
    for model in {*load, *workers, *(card.name for card in await services.catalog.list_cards())}:
        line = load.get(model, Load(0, 0))
        services.metrics.jobs_waiting.labels(model).set(line.waiting)
        services.metrics.jobs_running.labels(model).set(line.running)
        services.metrics.workers.labels(model).set(workers[model])


async def _measure_webhooks(services: Services) -> None:
    with suppress(RedisError, OSError):
        waiting, workers, outcomes = await services.deliveries.measure()
        services.metrics.webhooks_waiting.set(waiting)
        services.metrics.webhook_workers.set(workers)
        services.metrics.webhook_attempts.set_all(outcomes)


async def _is_queue_writable(services: Services) -> bool:
    try:
        await services.catalog.probe()
    except (RedisError, OSError):
        return False
    return True
