"""A network that breaks: passes connections on and cuts each one after some bytes of answer."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from urllib.parse import urlsplit


@contextmanager
def cutting_proxy(url: str, *, after_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """The address of the broken network, and the bytes that each connection let through."""
    target = urlsplit(url)
    cuts: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = (target.hostname or "", target.port or 80)
        Thread(target=_accept, args=(server, address, after_bytes, cuts), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", cuts
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, target: tuple[str, int], limit: int, cuts: list[int]) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return
        far = socket.create_connection(target)
        Thread(target=_pass_on, args=(near, far), daemon=True).start()
        Thread(target=_pass_back, args=(far, near, limit, cuts), daemon=True).start()


def _pass_on(near: socket.socket, far: socket.socket) -> None:
    with suppress(OSError):
        while data := near.recv(65_536):
            far.sendall(data)


def _pass_back(far: socket.socket, near: socket.socket, limit: int, cuts: list[int]) -> None:
    passed = 0
    with suppress(OSError):
        while passed < limit and (data := far.recv(min(65_536, limit - passed))):
            near.sendall(data)
            passed += len(data)
    cuts.append(passed)
    for each in (near, far):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
