"""A server in front, as nginx or Apache: takes its own path off and puts another Host."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from urllib.parse import urlsplit


@contextmanager
def reverse_proxy(url: str, path: str) -> Iterator[str]:
    """The address at which all of a server is seen below `path`."""
    place = urlsplit(url)
    target = (place.hostname or "", place.port or 80)
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"localhost:{server.getsockname()[1]}"
        Thread(target=_accept, args=(server, target, path), daemon=True).start()
        yield f"http://{here}{path}/"
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, target: tuple[str, int], path: str) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return
        Thread(target=_serve, args=(near, target, path), daemon=True).start()


def _serve(near: socket.socket, target: tuple[str, int], path: str) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = near.recv(65_536)
        if not data:  # browsers open connections ahead of need
            return near.close()
        head += data
    far = socket.create_connection(target)
    far.sendall(_rewrite(head, target, path))
    Thread(target=_pass, args=(near, far), daemon=True).start()
    _pass(far, near)


def _rewrite(head: bytes, target: tuple[str, int], path: str) -> bytes:
    head = re.sub(rb"^(\w+) " + path.encode() + rb"/", rb"\1 /", head)
    host = f"Host: {target[0]}:{target[1]}\r\nX-Forwarded-Host: ".encode()
    head = re.sub(rb"(?i)(?<=\r\n)host: ", host, head, count=1)
    # One request a connection: what follows would have to be taken apart as well.
    return re.sub(rb"(?i)(?<=\r\n)connection: keep-alive", b"Connection: close", head)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
