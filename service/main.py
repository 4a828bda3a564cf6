"""The API process: wiring only."""

import gc
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import FrameType

import redis
import uvicorn
from anyio import create_task_group
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import ValidationError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from api_schemas.settings import describe_refused, refuse, spare_loopback, tell_doubts
from service import logs, openapi
from service.background import Background
from service.catalog import ModelCatalog
from service.dependencies import Services
from service.disk_space import DiskSpace
from service.event_stream import EventStream
from service.http import middleware, problems
from service.http.connections import (
    ConnectionLimits,
    bind_limits,
    fit_connections,
    raise_descriptor_limit,
)
from service.http.signed_urls import LinkSigner
from service.image_store import ImageStore
from service.images.deep_zoom import PreviewCanvas
from service.images.uploads import Uploads
from service.indexes import Indexes
from service.job_queue import JobQueue
from service.job_store import JobStore
from service.jobs.admission import Admission
from service.jobs.deadlines import Deadlines
from service.jobs.dispatcher import Dispatcher
from service.jobs.idempotency import IdempotencyStore
from service.jobs.intake import Intake
from service.jobs.reconciler import Reconciler
from service.jobs.retention import Retention
from service.jobs.views import JobViews
from service.live.hub import LiveHub
from service.metrics import Metrics
from service.routes import derived, events, images, jobs, models, system, viewer
from service.rq_queues import RqQueues
from service.settings import ServiceSettings
from service.throughput import Throughput
from service.unreadable import UnreadableRecords

# For an answer of the queue server, twice on a new connection; reads of streams wait for events on purpose.
_ANSWER_TIMEOUT_S = 1.0
_STREAM_TIMEOUT_S = 5.0
_REDIS_CONNECTIONS = 50
# A request that gets no connection by then is refused; streams, which hold none while they wait, may take longer.
_REQUEST_WAIT_S = 0.5
_SHUTDOWN_S = 10
_KEEP_ALIVE_S = 75
_DAY_S = 86_400
# Of every answer, those of failures too: no page may frame ours, and what we say is what it is.
_SAFETY_HEADERS = [
    ("Content-Security-Policy", "frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]
_GARBAGE_THRESHOLDS = 20_000, 20, 20


def create_app(settings: ServiceSettings) -> FastAPI:
    """Build every part once and connect them."""
    metrics, throughput = Metrics(), Throughput()
    client, blocking_client = (
        _open_redis(settings, _ANSWER_TIMEOUT_S, _REQUEST_WAIT_S),
        _open_blocking_redis(settings),
    )
    stream_client = _open_redis(settings, _STREAM_TIMEOUT_S, _STREAM_TIMEOUT_S)
    unreadable = UnreadableRecords(metrics)
    hub = LiveHub(stream_client, metrics, throughput, unreadable)
    records = JobStore(stream_client, unreadable)
    follower = EventStream(stream_client, hub, records, settings.ping_interval_s)
    services = _build_services(settings, client, blocking_client, follower, metrics, throughput, unreadable)
    indexes = Indexes(client, services.jobs, services.queue, unreadable)
    background = _build_background(settings, services, hub, indexes)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncGenerator[None]:
        # Work in threads can swallow a plain task's cancellation; a task group's is delivered again.
        async with create_task_group() as group:
            group.start_soon(background.run)
            yield
            hub.close()
            group.cancel_scope.cancel()
        await client.aclose()
        await stream_client.aclose()
        blocking_client.close()

    app = FastAPI(
        title="Chorale",
        version=version("chorale"),
        description="Very large pictures by tiled diffusion, with live previews.",
        docs_url=None,  # its scripts would come from other hosts; see routes/viewer.py
        redoc_url=None,
        lifespan=live,
    )
    app.state.services = services
    app.state.background = background
    app.state.hub = hub
    _add_doors(app, settings, metrics)
    return app


def main() -> None:
    """Run until SIGTERM or Ctrl-C, with settings from the environment; exit code 2 if these are refused.

    The reason is also written to the file that CHORALE_REFUSAL_FILE names, for whoever has started this.
    """
    logs.set_up()
    spare_loopback(os.environ)
    try:
        settings = ServiceSettings()
    except ValidationError as error:
        sys.exit(refuse(describe_refused(error)))
    if not settings.is_loopback() and not settings.allow_open_bind:
        why = f"CHORALE_HOST={settings.host} would let anyone on the network create jobs:"
        sys.exit(refuse(f"{why} set CHORALE_ALLOW_OPEN_BIND=1 to allow this, or bind 127.0.0.1"))
    tell_doubts(settings)
    raise_descriptor_limit(settings.max_connections)
    app = create_app(settings)
    _collect_garbage_less_often()
    _Server(app, settings).run()


def _collect_garbage_less_often() -> None:
    """Of what 2,000 sockets hold almost nothing is garbage: looking through it took a third of the process's time."""
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


class _Server(uvicorn.Server):
    """Ends all event streams at the first signal, so that shutdown does not wait for clients."""

    def __init__(self, app: FastAPI, settings: ServiceSettings) -> None:
        super().__init__(server_config(app, settings))
        self._hub: LiveHub = app.state.hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hub.close()
        super().handle_exit(sig, frame)


def server_config(app: FastAPI, settings: ServiceSettings) -> uvicorn.Config:
    """How uvicorn is run."""
    limits = ConnectionLimits(
        fit_connections(settings.max_connections),
        receive_s=settings.receive_timeout_s,
        send_s=settings.send_timeout_s,
        metrics=app.state.services.metrics,
    )
    return uvicorn.Config(
        app,
        http=bind_limits(limits),
        host=settings.host,
        port=settings.port,
        ws="websockets-sansio",
        # JPEG does not shrink, and deflating each message for each viewer would cost most of a core.
        ws_per_message_deflate=False,
        ws_max_size=64 * 1024,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        # Longer than clients and proxies keep idle connections: else both end them at the same moment,
        # and a request that is just being sent gets lost (uvicorn's 5 s are also httpx's).
        timeout_keep_alive=_KEEP_ALIVE_S,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # see http/sites.py
        headers=_SAFETY_HEADERS,
    )


def _build_services(
    settings: ServiceSettings,
    client: Redis,
    blocking_client: redis.Redis,
    follower: EventStream,
    metrics: Metrics,
    throughput: Throughput,
    unreadable: UnreadableRecords,
) -> Services:
    store = JobStore(client, unreadable)
    retries, timeout_s = settings.job_retries, settings.job_timeout_s
    queue = JobQueue(client, RqQueues(blocking_client, unreadable, timeout_s=timeout_s, retries=retries))
    dispatcher = Dispatcher(queue, _find_quota)
    catalog = ModelCatalog(client, unreadable)
    links = LinkSigner(settings.link_secret, settings.link_lifetime_s)
    images = ImageStore.open(settings)
    space = DiskSpace(images.folder, settings.disk_reserve_bytes)
    admission = Admission(catalog, queue, throughput, space, settings.max_queued)
    idempotency = IdempotencyStore(client, settings.retention_days * _DAY_S, unreadable)
    uploads = Uploads(images, settings.max_picture_megapixels, settings.work_dir / "uploads")
    return Services(
        settings=settings,
        redis=client,
        jobs=store,
        queue=queue,
        catalog=catalog,
        dispatcher=dispatcher,
        intake=Intake(admission, idempotency, uploads, store, dispatcher, metrics),
        views=JobViews(queue, catalog, throughput, links, settings.root_path),
        events=follower,
        images=images,
        space=space,
        previews=PreviewCanvas(client, unreadable),
        links=links,
        metrics=metrics,
    )


def _build_background(
    settings: ServiceSettings, services: Services, hub: LiveHub, indexes: Indexes
) -> Background:
    interval_s, keep_s = settings.reconcile_interval_s, settings.retention_days * _DAY_S
    jobs, queue, dispatcher = services.jobs, services.queue, services.dispatcher
    reconciler = Reconciler(jobs, queue, dispatcher, indexes, services.metrics, interval_s)
    retention = Retention(jobs, queue, services.images, keep_s, interval_s)
    tasks = {
        "live": hub.run,
        "reconciler": reconciler.run,
        "retention": retention.run,
        "dispatcher": dispatcher.run,
        "deadlines": Deadlines(jobs, queue).run,
    }
    return Background(services.metrics, tasks)


async def _find_quota(_: str) -> None:
    """There are no API keys, so nothing is limited."""


def _add_doors(app: FastAPI, settings: ServiceSettings, metrics: Metrics) -> None:
    for routes in (jobs, derived, events, images, models, system, viewer):
        app.include_router(routes.router)
        _answer_head(app, routes.router)
    viewer.mount(app)
    problems.install(app)
    openapi.install(app)
    # Of all pictures of a body: masks of regions are small.
    upload_limit = settings.max_body_bytes + 4 * settings.max_picture_bytes
    middleware.install(app, metrics, settings, body_limit=settings.max_body_bytes, upload_limit=upload_limit)


def _answer_head(app: FastAPI, router: APIRouter) -> None:
    """Whatever answers GET answers HEAD (RFC 9110, 9.1); the description need not say so."""
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_model=route.response_model,
                response_class=route.response_class,
                include_in_schema=False,
            )


def _open_redis(settings: ServiceSettings, answer_s: float, wait_s: float) -> Redis:
    pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.redis_url,
        max_connections=_REDIS_CONNECTIONS,
        timeout=wait_s,
        socket_timeout=answer_s,
        socket_connect_timeout=answer_s,
        # One retry for a stale connection; a server that is away or hangs is reported at once.
        retry=AsyncRetry(ConstantBackoff(0.05), 1, (RedisConnectionError,)),
    )
    return Redis.from_pool(pool)


def _open_blocking_redis(settings: ServiceSettings) -> redis.Redis:
    return redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.redis_url,
        socket_timeout=_ANSWER_TIMEOUT_S,
        socket_connect_timeout=_ANSWER_TIMEOUT_S,
        retry=Retry(ConstantBackoff(0.05), 1, (RedisConnectionError,)),
    )


if __name__ == "__main__":
    main()
