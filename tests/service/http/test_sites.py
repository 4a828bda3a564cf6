"""What a page of another site may make a browser do here: nothing; and what programs and proxies may."""

import io
import json
import socket
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import pytest
from PIL import Image
from pydantic import ValidationError
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.http.sites import is_own_host, is_same_origin, name_hosts
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.routes.following import JOB, ws_url
from tests.story import Story

PROMPT = b'{"prompt": "lava", "width_px": 512, "height_px": 512}'
JSON = {"Content-Type": "application/json"}
VIEWER = "https://viewer.example"


@pytest.fixture
def own(url: str, story: Story) -> Iterator[httpx.Client]:
    """A client of a server with a queued job."""
    story.queue(JOB)
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def behind(settings: ServiceSettings, serve_with: Serve, story: Story) -> str:
    """A server that is reached as chorale.example, and used by the pages of a viewer."""
    story.queue(JOB)
    allowed = {"allowed_hosts": ("chorale.example",), "allowed_origins": (VIEWER,)}
    return serve_with(settings.model_copy(update=allowed))


def refuse_socket(url: str, **choices: object) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        connect(url, **choices)
    assert refusal.value.response.status_code == 403
    assert json.loads(refusal.value.response.body)["code"] == "forbidden"


def open_socket(url: str, **choices: object) -> None:
    with connect(url, **choices) as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LOCALHOST.:8000", True),
        ("chorale.localhost:80", True),
        ("127.0.0.1:9000", True),
        ("[::1]:8000", True),
        ("192.168.1.5", True),
        (socket.gethostname(), True),
        ("", True),
        ("pictures.example:8000", True),
        ("a.b.example.org", True),
        ("example.org", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@localhost", False),
        ("localhost:8000@evil.example", False),
        ("evil.example/localhost", False),
        ("evillocalhost", False),
        ("[::1].evil.example", False),
        ("[evil]", False),
    ],
)
def test_a_host_is_an_address_or_a_name_of_ours(host: str, own: bool) -> None:
    names = name_hosts(ServiceSettings(allowed_hosts="Pictures.example, *.example.org"))
    assert is_own_host(host, names) is own


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_hosts", "http://pictures.example/x"),
        ("allowed_hosts", "api:8000"),
        ("forwarded_allow_ips", "zzz"),
        ("forwarded_allow_ips", "10.0.0.7, 10.0.0.0/99"),
    ],
)
def test_what_could_never_match_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match="as in"):
        ServiceSettings.model_validate({field: value})


def test_a_star_allows_every_host() -> None:
    assert is_own_host("evil.example", name_hosts(ServiceSettings(allowed_hosts="*")))


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("https://Chorale.example", "chorale.example", True),
        ("https://chorale.example", "chorale.example:443", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", False),
        ("http://chorale.example", "chorale.example:443", False),
        ("null", "null", False),
        ("null", "", False),
        ("http://evil.example?127.0.0.1:8000", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000.evil.example", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000@evil.example", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000", False),
        ("http://[::1", "127.0.0.1:8000", False),
        ("http://]", "127.0.0.1:8000", False),
        ("http://[v1.a]", "127.0.0.1:8000", False),
        ("http://\u2100.example", "127.0.0.1:8000", False),
        ("", "127.0.0.1:8000", False),
    ],
)
def test_an_origin_is_a_host_and_a_port(origin: str, host: str, same: bool) -> None:
    assert is_same_origin(origin, host) is same


def test_a_rebound_name_reads_posts_and_follows_nothing(own: httpx.Client) -> None:
    """The browser takes the attacker's page for one of this server: only the name in Host tells."""
    evil = {"Host": "evil.example:8000", "X-Forwarded-Host": "localhost", "Sec-Fetch-Site": "same-origin"}
    for method, path in (
        ("GET", "/v1/jobs"),
        ("GET", "/"),
        ("POST", "/v1/jobs"),
        ("GET", f"/v1/jobs/{JOB}/image"),
    ):
        answer = own.request(method, path, headers=evil | JSON, content=PROMPT if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        assert "CHORALE_ALLOWED_HOSTS" in answer.json()["detail"]
    host = str(own.base_url.netloc, "ascii")
    refuse_socket(ws_url(f"http://evil.localhost.example:{host.partition(':')[2]}"), sock=_dial(host))
    assert len(own.get("/v1/jobs").json()["data"]) == 1


def _dial(host: str) -> socket.socket:
    """A connection to where the rebound name points."""
    name, _, port = host.partition(":")
    return socket.create_connection((name, int(port)))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://127.0.0.1:1"},  # another server of this machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
    ],
)
def test_pages_of_other_sites_change_nothing(own: httpx.Client, headers: dict[str, str]) -> None:
    host = str(own.base_url).rstrip("/")
    for path, content in (("/v1/jobs", PROMPT), (f"/v1/jobs/{JOB}/cancel", None)):
        answer = own.post(path, content=content, headers=headers | JSON)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    picture = own.post("/v1/jobs", files={"request": (None, PROMPT, "application/json")}, headers=headers)
    assert picture.status_code == 403
    refuse_socket(ws_url(host), additional_headers=headers)
    (job,) = own.get("/v1/jobs").json()["data"]
    assert job["status"] == "queued"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_browsers_send_unasked_is_no_request(own: httpx.Client, kind: str | None) -> None:
    answer = own.post("/v1/jobs", content=PROMPT, headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Content-Type")


def test_our_own_page_and_programs_need_nothing(own: httpx.Client) -> None:
    """A browser on our page says so in either header; curl says nothing at all."""
    here = str(own.base_url).rstrip("/")
    for headers in ({}, {"Origin": here}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert own.post("/v1/jobs", content=PROMPT, headers=headers | JSON).status_code == 202
        open_socket(ws_url(here), additional_headers=headers)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    files = {"request": (None, PROMPT, "application/json"), "control_image": ("x.png", picture.getvalue())}
    assert own.post("/v1/jobs", files=files).json()["code"] == "invalid_request"  # its form, not its sender


def test_no_answer_may_be_framed_or_guessed_at(own: httpx.Client) -> None:
    for path in (
        "/",
        "/docs",
        "/viewer/main.js",
        "/v1/jobs",
        "/nowhere",
        f"/v1/jobs/{JOB}/image",
        "/openapi.json",
    ):
        headers = own.get(path).headers
        assert "frame-ancestors 'none'" in headers.get_list("Content-Security-Policy"), path
        assert headers.get_list("X-Content-Type-Options") == ["nosniff"]
        assert headers["Referrer-Policy"] == "same-origin"
    for path in ("/", "/docs"):
        policies = own.get(path).headers.get_list("Content-Security-Policy")
        assert any("default-src 'none'; script-src 'self';" in policy for policy in policies)


def test_an_allowed_site_reads_posts_and_follows(behind: str) -> None:
    """As a deep-zoom viewer does that lives elsewhere."""
    tile = httpx.get(f"{behind}/v1/jobs/{JOB}/image.dzi", headers={"Origin": VIEWER})
    assert tile.headers["Access-Control-Allow-Origin"] == VIEWER
    asked = {
        "Origin": VIEWER,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    asking = httpx.options(f"{behind}/v1/jobs", headers=asked)
    assert (asking.status_code, asking.headers["Access-Control-Allow-Origin"]) == (200, VIEWER)
    crossing = {"Origin": VIEWER, "Sec-Fetch-Site": "cross-site"}
    assert httpx.post(f"{behind}/v1/jobs", content=PROMPT, headers=crossing | JSON).status_code == 202
    open_socket(ws_url(behind), additional_headers=crossing)
    other = {"Origin": "https://evil.example"}
    assert "Access-Control-Allow-Origin" not in httpx.get(f"{behind}/v1/jobs", headers=other).headers
    assert httpx.options(f"{behind}/v1/jobs", headers=asked | other).status_code == 400


def test_without_allowed_sites_none_may_read(own: httpx.Client) -> None:
    answer = own.get("/v1/jobs", headers={"Origin": VIEWER})
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_proxy_that_rewrites_host_says_which_one_it_was(behind: str) -> None:
    """As Apache does; only names of ours count, also from a proxy that passes everything on."""
    ours = {
        "X-Forwarded-Host": "chorale.example",
        "X-Forwarded-Proto": "https",
        "Origin": "https://chorale.example",
    }
    assert httpx.post(f"{behind}/v1/jobs", content=PROMPT, headers=ours | JSON).status_code == 202
    open_socket(ws_url(behind), additional_headers=ours)
    moved = httpx.get(f"{behind}/v1/jobs/", headers=ours, follow_redirects=False)
    assert (
        urljoin("https://chorale.example/v1/jobs/", moved.headers["Location"])
        == "https://chorale.example/v1/jobs"
    )
    evil = {"X-Forwarded-Host": "evil.example", "Origin": "https://evil.example"}
    assert httpx.post(f"{behind}/v1/jobs", content=PROMPT, headers=evil | JSON).status_code == 403


def test_only_the_proxies_that_are_named_are_trusted(settings: ServiceSettings, serve_with: Serve) -> None:
    chosen = {"forwarded_allow_ips": ("10.0.0.0/8",), "allowed_hosts": ("chorale.example",)}
    url = serve_with(settings.model_copy(update=chosen))
    forged = {"X-Forwarded-Host": "chorale.example", "Origin": "https://chorale.example"}
    assert httpx.post(f"{url}/v1/jobs", content=PROMPT, headers=forged | JSON).status_code == 403


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_origins", "*"),
        ("allowed_origins", "viewer.example"),
        ("allowed_origins", "https://viewer.example/page"),
        ("root_path", "chorale"),
        ("root_path", "/a b"),
        ("link_secret", ""),
        ("link_secret", " \t"),
    ],
)
def test_a_setting_that_would_open_a_door_or_close_all_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=field):
        ServiceSettings(**{field: value})


def test_origins_are_compared_as_browsers_write_them() -> None:
    given = ServiceSettings(allowed_origins="https://Viewer.example:443/, http://[::1]:8080")
    assert given.allowed_origins == ("https://viewer.example", "http://[::1]:8080")
