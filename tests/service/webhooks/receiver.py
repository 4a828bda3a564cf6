"""A receiver of webhooks on a real port, and the process that delivers them."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from standardwebhooks.webhooks import Webhook

SECRET, OTHER_SECRET = (f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2))
PATIENCE_S = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A POST that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def read(self) -> Mapping[str, Any]:
        return json.loads(self.body)

    def verify(self, secret: str = SECRET) -> Mapping[str, Any]:
        """As a receiver does, by the library."""
        return Webhook(secret).verify(self.body, self.headers)


class Receiver:
    """Answers each path with what the test says, in turn; the last of them stays."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.let_go = threading.Event()  # what hangs until then
        self.location = ""
        self._answers: dict[str, list[int]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def say(self, path: str, *statuses: int) -> str:
        """The URL of a path, which will answer so; 0 does not answer."""
        self._answers[path] = list(statuses)
        return self.url + path

    def find(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    def wait(self, path: str, count: int = 1) -> list[Call]:
        return eventually(lambda: self.find(path) if len(self.find(path)) >= count else None)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                body = self.rfile.read(size)
                if len(body) < size:  # whoever sent it was killed
                    return
                receiver.calls.append(Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                answers = receiver._answers.get(self.path, [204])
                status = answers.pop(0) if len(answers) > 1 else answers[0]
                if status == 0:
                    receiver.let_go.wait(PATIENCE_S)
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", receiver.location)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the calls are kept."""

        return Handler


@contextmanager
def receive() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.let_go.set()
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


class DeliveryProcess:
    """`chorale webhooks`, which may be killed and started again."""

    def __init__(self, valkey: str, log: str, **environment: str) -> None:
        self._environment = os.environ | {"CHORALE_REDIS_URL": valkey} | environment
        self._log = log
        self.start()

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.webhooks.main"], env=self._environment, stderr=log, stdout=log
            )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def read_log(self) -> str:
        with open(self._log) as log:
            return log.read()


def eventually(find: Callable[[], T | None]) -> T:
    """What is found at last."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := find()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found
