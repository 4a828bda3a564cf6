"""Slow and too many connections: they end, are counted, and nobody else notices."""

import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.sync.client import connect

from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.test_main import process
from tests.story import Story

JOB = "5" * 28
HEADS = [
    b"",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",  # and then a second one, which stays in its head
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n{",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9999\r\n\r\n--x",
]  # fmt: skip


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def open_at(url: str, stack: ExitStack, head: bytes) -> socket.socket:
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port), timeout=20)
    stack.enter_context(connection)
    connection.sendall(head)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """All that came until the server closed; a timeout fails the test."""
    pieces = []
    try:
        while piece := connection.recv(65_536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def closed_for(api: httpx.Client) -> dict[str, float]:
    lines = api.get("/metrics").text.splitlines()
    rows = [line.split() for line in lines if line.startswith("chorale_connections_closed_total{")]
    return {name.split('"')[1]: float(value) for name, value in rows}


def test_slow_senders_are_let_go_and_others_are_served(
    settings: ServiceSettings, serve_with: Serve, story: Story, opened: ExitStack
) -> None:
    """Heads that end never, bodies that stall, and a client that only connects."""
    story.queue(JOB)
    url = serve_with(settings.model_copy(update={"receive_timeout_s": 1.0}))
    with httpx.Client(base_url=url) as api, connect(f"ws{url[4:]}/v1/jobs/{JOB}/ws") as follower:
        slow = [open_at(url, opened, head) for head in HEADS * 5]
        for connection in slow[2::6]:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.sendall(HEADS[1])
        assert api.post("/v1/jobs", json={"prompt": "lava"}).status_code == 202
        answers = [read_to_end(connection) for connection in slow]
        assert all(b" 408 " in answer for answer in answers[3::6] + answers[4::6] + answers[5::6])
        assert b"must come at 16 KiB/s" in answers[3]
        assert not any(answers[0::6] + answers[1::6])
        assert not any(b"HTTP" in answer for answer in answers[2::6])  # the first answer's end, perhaps
        assert closed_for(api) == {"slow_head": 15.0}
        story.start(JOB)
        while "job.started" not in str(follower.recv(timeout=20)):  # it has stayed, though it sends nothing
            pass


def test_a_steady_but_slow_head_ends_too(
    settings: ServiceSettings, serve_with: Serve, opened: ExitStack
) -> None:
    """Each byte comes in time; the head does not."""
    url = serve_with(settings.model_copy(update={"receive_timeout_s": 0.4}))
    connection = open_at(url, opened, HEADS[1])
    connection.settimeout(0.1)
    sent = 0
    while sent < 200 and _send_and_wait(connection):
        sent += 1
    assert 0 < sent < 200


def _send_and_wait(connection: socket.socket) -> bool:
    """False once the server has closed."""
    try:
        connection.send(b"a")
        return bool(connection.recv(100))
    except TimeoutError:
        return True
    except OSError:
        return False


def read_answer(connection: socket.socket) -> bytes:
    """One, with its body: they may come apart."""
    answer = b""
    while not (found := re.match(rb"(?si)(.*?content-length: (\d+).*?\r\n\r\n)(.*)", answer)) or len(
        found[3]
    ) < int(found[2]):
        more = connection.recv(65_536)
        assert more, answer
        answer += more
    return answer


GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
FIELDS = b"Xyz: aaaaaaaaaaaaaaaaaaaa\r\n"


ENDLESS = [
    (b"GET /healthz?", b"a", b"414"),
    (GET + b"X: ", b"a", b"431"),
    (GET + b"X", b"a", b"431"),
    (GET, FIELDS, b"431"),
    (GET + b"\r\n" + GET + b"X: ", b"a", b"431"),
    (CHUNKED + b"0\r\n", FIELDS, b"431"),
    (CHUNKED + b"1;", b"a", b"431"),
]


def test_no_head_or_trailer_is_held_that_is_larger_than_it_may_be(url: str, opened: ExitStack) -> None:
    """However much is sent: it is refused before the process has grown by that; whole requests before it are answered."""
    before = psutil.Process().memory_info().rss
    for head, filling, status in ENDLESS:
        connection = open_at(url, opened, head)
        with suppress(ConnectionError):  # closed while more is sent
            for _ in range(64):
                connection.sendall(filling * ((1 << 20) // len(filling)))
        answer = read_to_end(connection)
        assert psutil.Process().memory_info().rss - before < 24 << 20
        assert b"HTTP/1.1 " + status in answer or not answer  # it may be lost with a connection that is reset
    with httpx.Client(base_url=url) as api:
        assert closed_for(api)["large_head"] == len(ENDLESS)


def test_the_limit_of_heads_counts_for_each_request_and_not_for_bodies(
    url: str, story: Story, opened: ExitStack
) -> None:
    """60,000 bytes are taken, and again; 70,000 are told why not, and what follows them is no request."""
    connection = open_at(url, opened, b"")
    for _ in range(3):
        connection.sendall(GET + b"X: " + b"a" * 60_000 + b"\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
    body = b'{"prompt": "lava"}' + b" " * 150_000
    for sent in (b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, FIELDS * 1000), b""):
        connection.sendall(
            CHUNKED + sent if sent else GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n" + GET + b"\r\n"
        )
        answer = read_answer(connection)
        assert answer.startswith(b"HTTP/1.1 202" if sent else b"HTTP/1.1 431"), answer
    assert b'"code":"invalid_request"' in answer
    assert b"HTTP/1.1 200" not in answer + read_to_end(connection)


def test_of_too_many_connections_the_longest_idle_gives_way(
    settings: ServiceSettings, serve_with: Serve, opened: ExitStack
) -> None:
    url = serve_with(settings.model_copy(update={"max_connections": 10}))
    first = open_at(url, opened, HEADS[1])
    with httpx.Client(base_url=url) as api:
        assert api.get("/healthz").status_code == 200
        others = [open_at(url, opened, HEADS[1]) for _ in range(30)]
        assert read_to_end(first) == b""
        for each in others[:10]:
            assert read_to_end(each) == b""
        assert closed_for(api)["evicted"] >= 21


def test_where_all_connections_have_work_a_new_one_is_refused_at_once(
    settings: ServiceSettings, serve_with: Serve, story: Story, opened: ExitStack
) -> None:
    story.queue(JOB)
    url = serve_with(settings.model_copy(update={"max_connections": 4}))
    followers = [opened.enter_context(connect(f"ws{url[4:]}/v1/jobs/{JOB}/ws")) for _ in range(4)]
    for each in followers:
        each.recv(timeout=20)
    answer = read_to_end(open_at(url, opened, b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 5" in answer
    followers[0].close()
    deadline = time.monotonic() + 20
    while not read_to_end(open_at(url, opened, b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200"):
        assert time.monotonic() < deadline


def test_a_client_that_does_not_read_its_answer_is_let_go(
    settings: ServiceSettings, serve_with: Serve, opened: ExitStack
) -> None:
    """The page's largest file, many times in one connection, so that no buffer of the kernel takes it all."""
    url = serve_with(settings.model_copy(update={"send_timeout_s": 0.3}))
    file = b"GET /viewer/vendor/openseadragon/openseadragon.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection = open_at(url, opened, file * 100)
    with httpx.Client(base_url=url) as api:
        deadline = time.monotonic() + 20
        while closed_for(api).get("slow_reader") != 1.0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(read_to_end(connection)) > 100_000


def test_few_descriptors_are_told_and_a_flood_of_connections_takes_them_from_nobody(
    valkey: str, tmp_path: Path, opened: ExitStack
) -> None:
    """Also when they run out after all, as by other files: it costs some lines of the log, and passes."""
    environment = {"CHORALE_REDIS_URL": valkey, "CHORALE_STORE_URL": (tmp_path / "store").as_uri()}
    with process(environment, descriptors=260) as (server, url):
        for _ in range(400):
            open_at(url, opened, HEADS[1])
        assert httpx.get(f"{url}/readyz").json()["queue"] == "ok"
        assert httpx.get(f"{url}/v1/jobs").status_code == 200
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (8, 260))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz", timeout=1)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (260, 260))
        assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
        server.send_signal(signal.SIGTERM)
        opened.close()
        _, text = server.communicate(timeout=30)
    assert "260 file descriptors allow 40 connections in place of 4096" in text
    assert len(text) < 40_000
