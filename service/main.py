"""The API process: wiring only."""

import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import FrameType

import redis
import uvicorn
from anyio import create_task_group
from fastapi import FastAPI
from pydantic import ValidationError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from api_schemas.settings import describe_refused, refuse
from service import openapi
from service.catalog import ModelCatalog
from service.dependencies import Services
from service.event_stream import EventStream
from service.http import middleware, problems
from service.http.signed_urls import LinkSigner
from service.image_store import ImageStore
from service.images.deep_zoom import PreviewCanvas
from service.images.uploads import Uploads
from service.job_queue import JobQueue
from service.job_store import JobStore
from service.jobs.admission import Admission
from service.jobs.idempotency import IdempotencyStore
from service.jobs.intake import Intake
from service.jobs.reconciler import Reconciler
from service.jobs.retention import Retention
from service.jobs.views import JobViews
from service.live.hub import LiveHub
from service.metrics import Metrics
from service.routes import events, images, jobs, models, system, viewer
from service.settings import ServiceSettings
from service.throughput import Throughput

_REDIS_TIMEOUT_S = 5.0
_REDIS_CONNECTIONS = 50
_SHUTDOWN_S = 10
_KEEP_ALIVE_S = 75
_DAY_S = 86_400


def create_app(settings: ServiceSettings) -> FastAPI:
    """Build every part once and connect them."""
    metrics, throughput = Metrics(), Throughput()
    client, blocking_client = _open_redis(settings), _open_blocking_redis(settings)
    hub = LiveHub(client, metrics, throughput)
    services = _build_services(settings, client, blocking_client, hub, metrics, throughput)
    reconciler = Reconciler(services.jobs, services.queue, metrics, settings.reconcile_interval_s)
    retention = _build_retention(settings, services)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncGenerator[None]:
        # Work in threads can swallow a plain task's cancellation; a task group's is delivered again.
        async with create_task_group() as group:
            group.start_soon(hub.run)
            group.start_soon(reconciler.run)
            group.start_soon(retention.run)
            yield
            hub.close()
            group.cancel_scope.cancel()
        await client.aclose()
        blocking_client.close()

    app = FastAPI(
        title="Chorale",
        version=version("chorale"),
        description="Very large pictures by tiled diffusion, with live previews.",
        lifespan=live,
    )
    app.state.services = services
    app.state.hub = hub
    _add_doors(app, settings, metrics)
    return app


def main() -> None:
    """Run until SIGTERM or Ctrl-C, with settings from the environment."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("asgi_correlation_id").setLevel(logging.ERROR)  # a malformed id is no news
    try:
        settings = ServiceSettings()
    except ValidationError as error:
        sys.exit(refuse(describe_refused(error)))
    if not settings.is_loopback() and not settings.allow_open_bind:
        why = (
            f"CHORALE_HOST={settings.host} would let anyone on the network create jobs:"
            " set CHORALE_ALLOW_OPEN_BIND=1 to allow this, or bind 127.0.0.1"
        )
        sys.exit(refuse(why))
    app = create_app(settings)
    _Server(app, settings).run()


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
    return uvicorn.Config(
        app,
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
        server_header=False,
    )


def _build_services(
    settings: ServiceSettings,
    client: Redis,
    blocking_client: redis.Redis,
    hub: LiveHub,
    metrics: Metrics,
    throughput: Throughput,
) -> Services:
    store = JobStore(client)
    queue = JobQueue(blocking_client, timeout_s=settings.job_timeout_s, retries=settings.job_retries)
    catalog = ModelCatalog(client)
    links = LinkSigner(settings.link_secret, settings.link_lifetime_s)
    admission = Admission(catalog, queue, throughput, settings.max_queued)
    images = ImageStore.open(settings)
    idempotency = IdempotencyStore(client, settings.retention_days * _DAY_S)
    uploads = Uploads(images, settings.max_picture_megapixels)
    return Services(
        settings=settings,
        redis=client,
        jobs=store,
        queue=queue,
        catalog=catalog,
        intake=Intake(admission, idempotency, uploads, store, queue, metrics),
        views=JobViews(queue, catalog, throughput, links),
        events=EventStream(client, hub, store, settings.ping_interval_s),
        images=images,
        previews=PreviewCanvas(client),
        links=links,
        metrics=metrics,
    )


def _build_retention(settings: ServiceSettings, services: Services) -> Retention:
    keep_s = settings.retention_days * _DAY_S
    return Retention(services.jobs, services.queue, services.images, keep_s, settings.reconcile_interval_s)


def _add_doors(app: FastAPI, settings: ServiceSettings, metrics: Metrics) -> None:
    for routes in (jobs, events, images, models, system, viewer):
        app.include_router(routes.router)
    viewer.mount(app)
    problems.install(app)
    openapi.install(app)
    # Of all pictures of a body, which are held in memory together: masks of regions are small.
    upload_limit = settings.max_body_bytes + 4 * settings.max_picture_bytes
    middleware.install(app, metrics, body_limit=settings.max_body_bytes, upload_limit=upload_limit)


def _open_redis(settings: ServiceSettings) -> Redis:
    pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.redis_url,
        # After a restart hundreds of viewers reconnect at the same moment: they queue for connections.
        max_connections=_REDIS_CONNECTIONS,
        timeout=_REDIS_TIMEOUT_S,
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        # One retry for a stale connection; an unreachable server is reported at once.
        retry=AsyncRetry(ConstantBackoff(0.05), 1),
    )
    return Redis.from_pool(pool)


def _open_blocking_redis(settings: ServiceSettings) -> redis.Redis:
    return redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.redis_url,
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        retry=Retry(ConstantBackoff(0.05), 1),
    )


if __name__ == "__main__":
    main()
