"""`python -m service.webhooks.main`: deliver webhooks until told to stop. It needs no GPU and serves no requests."""

import asyncio
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import BoundedSemaphore, Event
from typing import Final

import redis
from anyio.from_thread import start_blocking_portal
from pydantic import ValidationError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_schemas.settings import describe_refused, refuse
from service import logs
from service.job_store import JobStore
from service.metrics import Metrics
from service.settings import ServiceSettings
from service.unreadable import UnreadableRecords
from service.webhooks.consumer import HandOver, WebhookWorker, set_aside
from service.webhooks.deliveries import Deliveries
from service.webhooks.endpoints import Endpoints
from service.webhooks.network import WebhookClient
from service.webhooks.notice import Notice
from service.webhooks.sender import Sender

_AT_ONCE: Final = 1000
_REDIS_CONNECTIONS: Final = 20
_REDIS_ANSWER_S: Final = 5.0
_REDIS_RETRIES: Final = 3
_RESOLVERS: Final = 64  # a name server that does not answer holds one for many seconds
log = logging.getLogger(__name__)


def main() -> int:
    """Exit code 0 when told to stop, 2 if the settings are refused."""
    logs.set_up()
    try:
        settings = ServiceSettings()
    except ValidationError as error:
        return refuse("; ".join(describe_refused(error, ServiceSettings)))
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    with _deliver_in_background(settings) as hand_over:
        _work(settings, stop, hand_over)
    return 0


def _work(settings: ServiceSettings, stop: Event, hand_over: HandOver) -> None:
    """Until told to stop; with a new connection and name after trouble with Redis."""
    while not stop.is_set():
        client = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            settings.redis_url, socket_timeout=15, socket_connect_timeout=5
        )
        try:
            set_aside(client)
            log.info("delivers webhooks")
            WebhookWorker(client, _name(), stop, hand_over).work(logging_level="WARNING")
        except (RedisError, OSError) as error:
            log.warning("waiting for Redis: %s", error)
        finally:
            client.close()
        stop.wait(1)


@contextmanager
def _deliver_in_background(settings: ServiceSettings) -> Generator[HandOver]:
    """Attempts are made in a thread of their own; those that have begun are finished before this ends."""
    places = BoundedSemaphore(_AT_ONCE)

    def free(attempt: "Future[None]") -> None:
        places.release()
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            # Its delivery is due again by itself.
            log.error("an attempt was not recorded: %s", error, exc_info=error)

    with start_blocking_portal() as portal:
        sender, client = portal.call(_build, settings)

        def hand_over(notice: Notice, ticket_ms: int) -> None:
            places.acquire()
            portal.start_task_soon(sender.send, notice, ticket_ms).add_done_callback(free)

        try:
            yield hand_over
        finally:
            _await_all(places)
            portal.call(client.aclose)


def _await_all(places: BoundedSemaphore) -> None:
    for _ in range(_AT_ONCE):
        places.acquire()


async def _build(settings: ServiceSettings) -> tuple[Sender, Redis]:
    """In the event loop that it is for."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_RESOLVERS, "resolve"))
    client = _open_redis(settings.redis_url)
    unreadable = UnreadableRecords(Metrics())
    prefix = settings.public_url or settings.root_path
    sender = Sender(
        JobStore(client, unreadable),
        Endpoints(client, settings.webhook_networks, unreadable),
        Deliveries(client, unreadable),
        WebhookClient(settings.webhook_networks, settings.webhook_timeout_s),
        prefix,
    )
    return sender, client


def _open_redis(url: str) -> Redis:
    pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        max_connections=_REDIS_CONNECTIONS,
        timeout=_REDIS_ANSWER_S,
        socket_timeout=_REDIS_ANSWER_S,
        socket_connect_timeout=_REDIS_ANSWER_S,
        retry=Retry(
            ExponentialBackoff(cap=1, base=0.05),
            _REDIS_RETRIES,
            (RedisConnectionError, RedisTimeoutError),
        ),
    )
    return Redis.from_pool(pool)


def _name() -> str:
    """RQ takes a name once."""
    return f"webhooks-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


if __name__ == "__main__":
    sys.exit(main())
