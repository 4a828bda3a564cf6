"""A POST goes to the address that was found allowed, or nowhere, and no receiver can hold it up."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from service.webhooks.errors import UndeliveredError
from service.webhooks.network import WebhookClient
from tests.service.webhooks.receiver import Receiver, receive

LOOPBACK = [ip_network("127.0.0.0/8")]
CERTIFICATE = Path(__file__).with_name("receiver.pem")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"


class Names(asyncio.SelectorEventLoop):
    """A name server whose answers change from question to question; it knows no addresses."""

    def __init__(self, answers: Sequence[str]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked = 0

    async def getaddrinfo(self, host, port, **_):  # pyright: ignore
        answer = self.answers[self.asked]
        self.asked += 1
        family = socket.AF_INET6 if ":" in answer else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (answer, port))]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


def post(client: WebhookClient, url: str, loop: asyncio.AbstractEventLoop | None = None) -> int:
    with asyncio.Runner(loop_factory=lambda: loop or asyncio.new_event_loop()) as runner:
        return runner.run(client.post(url, {"x-test": "1"}, b"{}"))


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A receiver of one connection, which does what it wants; on a busy machine a client may give up before it connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                return
            with connection:
                connection.recv(65_536)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f.1",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ],
)
def test_no_way_of_writing_it_leads_inside(receiver: Receiver, host: str) -> None:
    """What got past the look at its form: the resolver of the system reads all of these."""
    connected: list[object] = []
    receiver.server.verify_request = lambda request, _: not connected.append(request)  # type: ignore
    for scheme in ("http", "https"):
        with pytest.raises(UndeliveredError, match=r"no public address|URL is not valid"):
            post(WebhookClient((), 5), f"{scheme}://{host}:{receiver.server.server_port}/")
    assert connected == []


def test_a_name_is_resolved_once_and_the_connection_goes_there(receiver: Receiver) -> None:
    """Between the look and the connection the name's owner changes its address."""
    port = receiver.server.server_port
    names = Names(["127.0.0.1", "10.0.0.1"])
    assert post(WebhookClient(LOOPBACK, 5), f"http://rebinding.test:{port}/hook", names) == 204
    assert names.asked == 1
    (call,) = receiver.calls
    assert call.headers["host"] == f"rebinding.test:{port}"
    with pytest.raises(UndeliveredError, match="no public address"):
        post(WebhookClient(LOOPBACK, 5), f"http://rebinding.test:{port}/", Names(["10.0.0.1"]))
    with pytest.raises(UndeliveredError, match="no public address"):
        post(WebhookClient([ip_network("10.9.0.0/16")], 5), f"http://inside.test:{port}/", Names(["::1"]))
    assert len(receiver.calls) == 1


def test_tls_is_with_the_name_wherever_it_leads(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    port = receiver.server.server_port
    with pytest.raises(UndeliveredError, match="TLS: self-signed certificate"):
        post(WebhookClient(LOOPBACK, 5), f"https://receiver.test:{port}/", Names(["127.0.0.1"]))
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    client = WebhookClient(LOOPBACK, 5)
    assert post(client, f"https://receiver.test:{port}/", Names(["127.0.0.1"])) == 204
    with pytest.raises(UndeliveredError, match="TLS: Hostname mismatch"):
        post(client, f"https://other.test:{port}/", Names(["127.0.0.1"]))
    assert asked == ["receiver.test", "receiver.test", "other.test"]


def test_no_proxy_of_the_environment_is_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would resolve the name itself, inside."""
    monkeypatch.setenv("HTTP_PROXY", receiver.url)
    monkeypatch.setenv("ALL_PROXY", receiver.url)
    with pytest.raises(UndeliveredError):
        post(WebhookClient(LOOPBACK, 5), "http://inside.test/", Names(["10.0.0.1"]))
    assert receiver.calls == []


def test_the_status_counts_however_long_the_answer(receiver: Receiver) -> None:
    def flood(connection: socket.socket) -> None:
        try:
            connection.sendall(OK + bytes(8 << 20))
        except OSError:
            return
        raise AssertionError("all of it was read")

    with answering(flood) as url:
        assert post(WebhookClient(LOOPBACK, 5), url) == 200


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nx: ", b"\xff" * 9, b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_what_is_no_answer_ends_in_time(answer: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        try:
            connection.sendall(answer)
            while answer.startswith(b"HTTP"):
                connection.sendall(b"x")
                threading.Event().wait(0.02)
            connection.recv(1)
        except OSError:
            return

    with (
        answering(drip) as url,
        pytest.raises(UndeliveredError, match=r"no answer within 0\.3 s|is not HTTP|broke"),
    ):
        post(WebhookClient(LOOPBACK, 0.3), url)


def test_nobody_there_is_told_without_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UndeliveredError) as caught:
        post(WebhookClient(LOOPBACK, 5), f"http://closed.test:{port}/", Names(["127.0.0.1"]))
    assert "127" not in str(caught.value)
