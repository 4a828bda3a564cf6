"""The API on a real port, over a real Valkey and real files."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from redis import Redis

from chorale.key_records import KeyRecords
from service.app import create_app
from service.main import server_config
from service.settings import ServiceSettings
from tests.service.tenants import RESULT, Tenants, bearer
from tests.story import Story


@contextmanager
def serve(
    settings: ServiceSettings, surround: Callable[[FastAPI], None] = lambda _: None, *, port: int = 0
) -> Iterator[str]:
    """Run the API in a thread until the end of the `with` block; gives its address.

    Args:
        surround: adds what is before it, such as who calls.
    """
    # asyncio turns Nagle's algorithm off only where the protocol is named; it costs 40 ms a request.
    server_socket = socket.socket(proto=socket.IPPROTO_TCP)
    server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port may be served once more
    server_socket.bind(("127.0.0.1", port))
    app = create_app(settings)
    surround(app)
    server = uvicorn.Server(server_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server_socket]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server_socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        server_socket.close()


Serve = Callable[[ServiceSettings], str]


@pytest.fixture
def serve_with() -> Iterator[Serve]:
    """For tests that need settings of their own."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(serve(settings))


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(valkey: str, store_dir: Path) -> ServiceSettings:
    return ServiceSettings(
        redis_url=valkey,
        store_url=store_dir.as_uri(),
        work_dir=store_dir.parent / "work",
        reconcile_interval_s=0.2,
        ping_interval_s=0.5,
    )


@pytest.fixture
def redis(valkey: str) -> Iterator[Redis]:
    with Redis.from_url(valkey) as client:
        yield client


@pytest.fixture
def story(redis: Redis) -> Story:
    """A worker that is alive and has announced the model `glow`."""
    story = Story(redis)
    story.publish()
    return story


@pytest.fixture
def url(settings: ServiceSettings, serve_with: Serve) -> str:
    return serve_with(settings)


@pytest.fixture
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def records(redis: Redis) -> KeyRecords:
    return KeyRecords(redis)


@pytest.fixture
def tenants(url: str, records: KeyRecords) -> Iterator[Tenants]:
    keys = [
        records.create("ann", frozenset({"create", "read"})),
        records.create("bob", frozenset({"create", "read"})),
        records.create("operator", frozenset({"create", "read", "admin"})),
    ]
    clients = [httpx.Client(base_url=url, timeout=30, headers=bearer(key)) for key in keys]
    nobody = httpx.Client(base_url=url, timeout=30)
    yield Tenants(*clients, nobody, records)
    for client in (*clients, nobody):
        client.close()


@pytest.fixture
def made(tenants: Tenants, story: Story) -> str:
    """A finished job of ann's."""
    job_id = "0" * 28
    story.queue(job_id, key_id=tenants.key_id(tenants.ann))
    story.start(job_id)
    story.succeed(job_id, RESULT)
    return job_id
