"""Proxies of the environment, as in an office: the same rule for each request and each WebSocket."""

import json
import os
import subprocess
import sys
from pathlib import Path

from chorale.local import LocalStack
from tests.chorale.office_proxy import office_proxy

FAR = "http://192.0.2.7:8000"  # of nobody (RFC 5737); only the proxy knows the way
SHORT = ("generate", "waves", "--size", "256x256", "--steps", "3", "-o", "waves.png", "--url")
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

CASES: list[tuple[str, dict[str, str], str | None]] = [
    ("http://a.example", {"HTTP_PROXY": "http://p:3128"}, "http://p:3128"),
    ("http://a.example", {"http_proxy": "p:3128"}, "http://p:3128"),
    ("https://a.example", {"HTTP_PROXY": "http://p:3128"}, None),
    ("https://a.example", {"ALL_PROXY": "http://u:w@p:3128"}, "http://u:w@p:3128"),
    ("http://a.example", {"HTTP_PROXY": "http://p", "NO_PROXY": "b.example, a.example"}, None),
    ("http://x.a.example:8000", {"HTTP_PROXY": "http://p", "NO_PROXY": ".a.example"}, None),
    ("http://10.1.2.3:8000", {"HTTP_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, None),
    ("http://11.1.2.3:8000", {"HTTP_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, "http://p"),
    ("http://a.example", {"HTTP_PROXY": "http://p", "NO_PROXY": "*"}, None),
    ("http://localhost:8000", {"HTTP_PROXY": "socks5://p"}, None),
    ("http://127.0.0.2:8000", {"HTTP_PROXY": "socks5://p"}, None),
    ("http://[::1]:8000", {"HTTP_PROXY": "socks5://p"}, None),
    ("http://a.example", {"HTTP_PROXY": "socks5://u:hush@p:9"}, "socks5://p:9 cannot be used"),
    ("http://a.example", {"HTTP_PROXY": "http://u@p"}, "cannot be used"),
    ("http://a.example", {"HTTP_PROXY": "http://u:hush@p:x"}, "http://p:x cannot be used"),
    ("http://a.example", {"HTTP_PROXY": "p:99999"}, "cannot be used"),
    ("http://a.example", {"HTTP_PROXY": "http://[::1"}, "cannot be used"),
]
SCRIPT = """
import json, os, sys
from chorale.errors import ProxyError
from chorale.proxies import find_proxy

bare = dict(os.environ)

def find(url, environment):
    os.environ.clear()
    os.environ.update(bare | environment)
    try:
        return find_proxy(url)
    except ProxyError as error:
        return str(error)

print(json.dumps([find(*case) for case in json.loads(sys.argv[1])]))
"""


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name.lower() not in NAMES}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def generate(url: str, folder: Path, **environment: str) -> str:
    done = run("-m", "chorale.cli", *SHORT, url, folder=folder, **environment)
    assert done.returncode == 0, done.stderr
    assert (folder / "waves.png").is_file()
    return done.stderr


def test_everything_takes_the_proxy_or_nothing_does(stack: LocalStack, tmp_path: Path) -> None:
    with office_proxy(stack.url) as (proxy, asked):
        generate(stack.url, tmp_path, HTTP_PROXY=proxy, ALL_PROXY=proxy)  # this machine is near
        assert asked == []
        generate(FAR, tmp_path, HTTP_PROXY=proxy)
        assert asked[0] == f"POST {FAR}/v1/jobs HTTP/1.1"
        assert "CONNECT 192.0.2.7:8000 HTTP/1.1" in asked


def test_a_proxy_that_lets_no_websocket_through_costs_the_previews_alone(
    stack: LocalStack, tmp_path: Path
) -> None:
    with office_proxy(stack.url, tunnels=False) as (proxy, asked):
        assert "done" in generate(FAR, tmp_path, HTTP_PROXY=proxy)
        assert any("/events" in line for line in asked)


def test_the_environment_is_read_as_curl_reads_it(tmp_path: Path) -> None:
    asked = json.dumps([(url, environment) for url, environment, _ in CASES])
    found = json.loads(run("-c", SCRIPT, asked, folder=tmp_path).stdout)
    for case, answer in zip(CASES, found, strict=True):
        url, _, wanted = case
        if wanted is not None and "cannot be used" in wanted:
            assert wanted in answer, case
            assert "hush" not in answer
        else:
            assert answer == wanted, (url, case)
