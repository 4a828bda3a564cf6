"""What surrounds a request: labels that nobody invents, bodies of one length, the path below a proxy."""

import socket
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from websockets.sync.client import connect

from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.story import Story


def exchange(url: str, text: bytes) -> bytes:
    """All that the server answers to these bytes until it closes, or for a second."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 80), timeout=1) as line:
        line.sendall(text)
        answered = b""
        try:
            while data := line.recv(65_536):
                answered += data
        except TimeoutError:
            return answered + b"<still open>"
        return answered


def test_invented_methods_are_one_series(api: httpx.Client) -> None:
    """Some servers refuse what no RFC names before it gets here; those of WebDAV are names."""
    for method in ("MKCOL", "PROPFIND", "REPORT", *(f"INVENTED{number}" for number in range(20))):
        api.request(method, "/v1/jobs")
    counted = [line for line in api.get("/metrics").text.splitlines() if "requests_total{" in line]
    assert {line.partition(" ")[0] for line in counted} == {
        'chorale_http_requests_total{method="other",route="/v1/jobs",status="405"}'
    }


def test_a_body_of_two_lengths_is_refused_with_its_connection(api: httpx.Client) -> None:
    """A proxy that goes by the other length would take the rest for the next request."""
    url = str(api.base_url)
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for order in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    ):
        answered = exchange(
            url, b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + order + b"\r\n\r\n0\r\n\r\n" + smuggled
        )
        assert answered.startswith(b"HTTP/1.1 400 ")
        assert answered.count(b"HTTP/1.1 ") == 1
        assert b"<still open>" not in answered


@pytest.mark.parametrize("prefix", ["", "/pictures/chorale"], ids=["taken off", "left on"])
def test_all_works_below_a_path(
    settings: ServiceSettings, serve_with: Serve, story: Story, prefix: str
) -> None:
    """Whether the proxy in front takes the path off, as most do, or leaves it on."""
    root = "/pictures/chorale"
    url = serve_with(settings.model_copy(update={"root_path": root}))
    with httpx.Client(base_url=url + prefix) as api:
        created = api.post("/v1/jobs", json={"prompt": "lava"})
        job = created.json()
        assert created.headers["Location"] == job["urls"]["self"] == f"{root}/v1/jobs/{job['id']}"
        assert {path.startswith(f"{root}/v1/") for path in job["urls"].values() if path} == {True}
        assert api.get(job["urls"]["self"].removeprefix(root)).json()["id"] == job["id"]
        with connect(f"{url.replace('http', 'ws')}{prefix}/v1/jobs/{job['id']}/ws") as followed:
            assert '"job.queued"' in str(followed.recv(timeout=30)).replace(" ", "")
        assert api.get("/").text.startswith("<!doctype html>")
        assert api.get("/viewer/main.js").status_code == 200
        assert api.get("/openapi.json").json()["servers"] == [{"url": root}]
        assert api.delete("/v1/jobs").headers["Allow"] == "GET, HEAD, POST"
        for asked, meant in (("/v1/jobs/?limit=1", "/v1/jobs?limit=1"), ("/viewer", "/viewer/")):
            location = api.get(asked).headers["Location"]  # whatever the address that the browser knows
            assert urljoin(f"https://a.example{root}{asked}", location) == f"https://a.example{root}{meant}"
        assert 'route="/v1/jobs"' in api.get("/metrics").text
