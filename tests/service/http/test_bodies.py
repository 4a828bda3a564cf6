"""Bodies of those without a key are small, and take no space of those who have one."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest

from service.settings import ServiceSettings
from tests.service.tenants import Tenants, bearer
from tests.story import Story

HEAD = (
    b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def begin(url: str, size: int, kind: bytes = b"application/json") -> socket.socket:
    """A request to sign in that has sent so much of its body, and no end."""
    place = urlsplit(url)
    line = socket.create_connection((place.hostname or "", place.port or 80), timeout=30)
    line.sendall(HEAD % kind + b"%x\r\n" % size + b"a" * size + b"\r\n")
    return line


def test_nobody_fills_the_space_that_is_for_bodies(
    tenants: Tenants, settings: ServiceSettings, story: Story, url: str
) -> None:
    """They end before 64 MiB of them are here, whatever they announce."""
    most = settings.max_body_bytes - 100
    with ExitStack() as lines:
        begun = [lines.enter_context(begin(url, most)) for _ in range(257)]
        large = tenants.bob.post("/v1/jobs", json={"prompt": "x" * (most - 100)})
        assert large.status_code == 422
        assert {line.recv(12) for line in begun} == {b"HTTP/1.1 413"}


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_without_a_key_a_body_is_small_and_with_one_as_any_other(
    tenants: Tenants, url: str, kind: str
) -> None:
    key = tenants.key(tenants.ann)

    def send(size: int, **headers: str) -> list[httpx.Response]:
        def in_pieces() -> Iterator[bytes]:
            yield from (b"x" * (size // 2), b"x" * (size - size // 2))

        typed = {"Content-Type": kind} | headers
        contents = (b"x" * size, in_pieces())
        return [httpx.post(f"{url}/v1/session", content=each, headers=typed) for each in contents]

    for answer in send(4097) + send(4097, Authorization=f"{bearer(key)['Authorization']}0"):
        assert (answer.status_code, answer.json()["status"]) == (413, 413)
        assert answer.json()["detail"].endswith("without an API key a body may have 4096 bytes")
    for answer in send(4096) + send(4097, **bearer(key)):
        assert answer.status_code in (400, 422)
    assert httpx.post(f"{url}/v1/session", json={"key": key}).status_code == 200


def test_where_no_keys_are_required_all_bodies_are_alike(api: httpx.Client) -> None:
    assert api.post("/v1/session", json={"key": "x" * 10_000}).status_code == 401
