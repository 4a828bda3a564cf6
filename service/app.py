"""Every part of the API process, built once and connected."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

import redis
from anyio import create_task_group
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from service import openapi
from service.background import Background
from service.catalog import ModelCatalog
from service.dependencies import Services
from service.disk_space import DiskSpace
from service.event_stream import EventStream
from service.http import middleware, problems
from service.http.call_counter import CallCounter
from service.http.rate_limits import RateLimitMiddleware
from service.http.signed_urls import LinkSigner
from service.image_store import ImageStore
from service.images.deep_zoom import PreviewCanvas
from service.images.uploads import Uploads
from service.indexes import Indexes
from service.job_queue import JobQueue
from service.job_store import JobStore
from service.jobs.admission import Admission
from service.jobs.allowance import Allowance
from service.jobs.deadlines import Deadlines
from service.jobs.dispatcher import Dispatcher
from service.jobs.idempotency import IdempotencyStore
from service.jobs.intake import Intake
from service.jobs.reconciler import Reconciler
from service.jobs.retention import Retention
from service.jobs.views import JobViews
from service.keys.middleware import KeyMiddleware
from service.keys.store import KeyStore
from service.keys.watch import KeyWatch
from service.live.hub import LiveHub
from service.metrics import Metrics
from service.openai_api.attempts import Attempts
from service.quotas.known import KnownKeys
from service.quotas.rate import RateLimiter
from service.quotas.usage import UsageStore
from service.routes import (
    derived,
    events,
    images,
    jobs,
    models,
    openai_images,
    session,
    system,
    usage,
    viewer,
    webhooks,
)
from service.rq_queues import RqQueues
from service.settings import ServiceSettings
from service.throughput import Throughput
from service.unreadable import UnreadableRecords
from service.webhooks.deliveries import Deliveries
from service.webhooks.endpoints import Endpoints
from service.webhooks.recovery import Recovery

# For an answer of the queue server, twice on a new connection; reads of streams wait for events on purpose.
_ANSWER_TIMEOUT_S = 1.0
_STREAM_TIMEOUT_S = 5.0
_REDIS_CONNECTIONS = 50
# A request that gets no connection by then is refused; streams, which hold none while they wait, may take longer.
_REQUEST_WAIT_S = 0.5
_DAY_S = 86_400


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
    recovery = Recovery(services.webhooks, services.deliveries)
    indexes = Indexes(client, services.jobs, services.queue, recovery, unreadable)
    background = _build_background(settings, services, hub, indexes, recovery)

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
    _add_doors(app, settings, metrics, services.keys)
    return app


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
    catalog = ModelCatalog(client, unreadable)
    links = LinkSigner(settings.link_secret, settings.link_lifetime_s)
    images = ImageStore.open(settings)
    keys = KeyStore(client, unreadable, always=not settings.is_loopback())
    space = DiskSpace(images.folder, settings.disk_reserve_bytes)
    admission = Admission(catalog, queue, throughput, space, settings.max_queued)
    idempotency = IdempotencyStore(client, settings.retention_days * _DAY_S, unreadable)
    endpoints = Endpoints(client, settings.webhook_networks, unreadable)
    known_keys, counts = KnownKeys(keys.find_key), UsageStore(client)
    dispatcher = Dispatcher(queue, known_keys.find_quota)
    kept_s = (
        settings.retention_days * _DAY_S + settings.reconcile_interval_s if settings.retention_days else None
    )
    allowance = Allowance(known_keys, counts, catalog, throughput, metrics, kept_s)
    uploads = Uploads(images, settings.max_picture_megapixels, settings.work_dir / "uploads")
    return Services(
        settings=settings,
        redis=client,
        keys=keys,
        jobs=store,
        queue=queue,
        catalog=catalog,
        dispatcher=dispatcher,
        admission=admission,
        attempts=Attempts(client, unreadable),
        intake=Intake(admission, idempotency, uploads, store, dispatcher, endpoints, metrics, allowance),
        views=JobViews(queue, catalog, throughput, links, settings.root_path),
        events=follower,
        images=images,
        space=space,
        known_keys=known_keys,
        calls=CallCounter(RateLimiter(client), metrics),
        usage=counts,
        previews=PreviewCanvas(client, unreadable),
        links=links,
        webhooks=endpoints,
        deliveries=Deliveries(client, unreadable),
        metrics=metrics,
    )


def _build_background(
    settings: ServiceSettings, services: Services, hub: LiveHub, indexes: Indexes, recovery: Recovery
) -> Background:
    interval_s, keep_s = settings.reconcile_interval_s, settings.retention_days * _DAY_S
    jobs, queue, dispatcher, usage = services.jobs, services.queue, services.dispatcher, services.usage
    reconciler = Reconciler(jobs, queue, dispatcher, indexes, recovery, usage, services.metrics, interval_s)
    retention = Retention(jobs, queue, services.images, usage, keep_s, interval_s)
    tasks = {
        "live": hub.run,
        "reconciler": reconciler.run,
        "retention": retention.run,
        "keys": KeyWatch(services.keys, hub).run,
        "dispatcher": dispatcher.run,
        "deadlines": Deadlines(jobs, queue).run,
    }
    return Background(services.metrics, tasks)


_DOORS = (jobs, derived, events, images, models, openai_images, webhooks, session, usage, system, viewer)


def _add_doors(app: FastAPI, settings: ServiceSettings, metrics: Metrics, keys: KeyStore) -> None:
    for routes in _DOORS:
        app.include_router(routes.router)
        _answer_head(app, routes.router)
    viewer.mount(app)
    problems.install(app)
    openapi.install(app)
    # The innermost of all: it counts the calls of whom the next one has let in.
    services: Services = app.state.services
    app.add_middleware(RateLimitMiddleware, keys=services.known_keys, calls=services.calls)
    # Around it, and inside of all others: a refusal is counted, has its id and is told to other sites.
    app.add_middleware(KeyMiddleware, keys=keys)
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
