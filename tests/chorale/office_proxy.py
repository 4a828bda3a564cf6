"""The proxy of an office: plain requests and, if it lets them, tunnels; every host leads to one server."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from urllib.parse import urlsplit


@contextmanager
def office_proxy(url: str, *, tunnels: bool = True) -> Iterator[tuple[str, list[str]]]:
    """The address of the proxy, and the first line of each connection."""
    place = urlsplit(url)
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = (place.hostname or "", place.port or 80)
        Thread(target=_accept, args=(server, target, tunnels, asked), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, target: tuple[str, int], tunnels: bool, asked: list[str]) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return
        Thread(target=_serve, args=(near, target, tunnels, asked), daemon=True).start()


def _serve(near: socket.socket, target: tuple[str, int], tunnels: bool, asked: list[str]) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += near.recv(65_536)
    line, _, rest = head.partition(b"\r\n")
    asked.append(line.decode())
    method, address, version = line.split(b" ")
    if method == b"CONNECT" and not tunnels:
        near.sendall(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n")
        return near.close()
    far = socket.create_connection(target)
    if method == b"CONNECT":
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    else:
        # One request a connection: what follows would have to be taken apart as well.
        path = b"/" + address.split(b"/", 3)[3]
        rest = rest.replace(b"Connection: keep-alive", b"Connection: close")
        far.sendall(b" ".join((method, path, version)) + b"\r\n" + rest)
    Thread(target=_pass, args=(near, far), daemon=True).start()
    _pass(far, near)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
