"""The log of the API process, as an operator reads it."""

import logging
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from service.logs import RepeatFilter
from tests.service.test_main import process
from tests.story import Story

JOB = "6" * 28


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_of_what_repeats_some_are_told_and_then_their_number() -> None:
    kept, own, others = _Kept(), logging.getLogger("service.test_logs"), logging.getLogger("library")
    kept.addFilter(RepeatFilter(most=3, window_s=0.2))
    logging.getLogger("service.logs").setLevel(logging.INFO)
    for logger in (own, others, logging.getLogger("service.logs")):
        logger.addHandler(kept)
        logger.setLevel(logging.INFO)
    for number in range(300):
        own.info("job %d queued", number)  # one line a job is no repetition
        others.info("connection %d open", number)
        own.warning("request %d failed", number)
    deadline = time.monotonic() + 20
    while _count(kept.lines, "connection") + _count(kept.lines, "request") < 600:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [line for line in kept.lines if line.startswith("job")] == [f"job {n} queued" for n in range(300)]
    for kind in ("connection", "request"):
        shown = [line for line in kept.lines if line.startswith(kind)]
        assert _count(kept.lines, kind) == 300
        assert shown[:3] == [
            f"{kind} {number} {'open' if kind == 'connection' else 'failed'}" for number in range(3)
        ]
        assert len(shown) < 150  # three, if the machine is not too busy
    time.sleep(0.2)
    others.info("connection %d open", 1000)  # a new window
    assert kept.lines[-1] == "connection 1000 open"


def _count(lines: list[str], kind: str) -> int:
    """Records of this kind that were shown, and those of which only the number was."""
    told = [line.split(" more in ") for line in lines if f" like: {kind}" in line]
    return sum(line.startswith(kind) for line in lines) + sum(int(number) for number, _ in told)


def test_errors_of_two_kinds_at_one_place_are_counted_apart() -> None:
    kept, logger = _Kept(), logging.getLogger("library.two")
    kept.addFilter(RepeatFilter(most=1, window_s=60))
    logger.addHandler(kept)
    for error in (OSError("a"), OSError("b"), ValueError("c"), ValueError("d")):
        logger.error("%s", error, exc_info=error)
    assert kept.lines == ["a", "c"]


def test_a_line_names_time_request_and_job_and_no_client_makes_a_line(
    valkey: str, tmp_path: Path, story: Story
) -> None:
    """Also: what clients do wrong, a client that leaves in an upload among it, makes no traceback."""
    story.queue(JOB)
    environment = {"CHORALE_REDIS_URL": valkey, "CHORALE_STORE_URL": (tmp_path / "store").as_uri()}
    with process(environment) as (server, url):
        with httpx.Client(base_url=url) as api:
            job = api.post("/v1/jobs", json={"prompt": "lava"}, headers={"X-Request-ID": "mine"}).json()["id"]
            for _ in range(40):
                _send(api, b"nonsense\r\n\r\n")
            _leave_in_an_upload(api)
            api.post(f"/v1/jobs/{JOB}/cancel", headers={"X-Request-ID": "yours"})
            api.get("/v1/jobs/%0aforged%20line")
            assert _await(api, 'route="/v1/jobs",status="499"} 1.0')
        server.send_signal(signal.SIGTERM)
        _, text = server.communicate(timeout=30)
    lines = text.splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S+ \[\S+ \S+\] ", line) for line in lines
    )
    (queued,) = [line for line in lines if f"job {job} queued" in line]
    assert "[mine -]" in queued
    assert any(f"[yours {JOB}] job {JOB}, queued, is to be canceled" in line for line in lines), text
    assert sum("Invalid HTTP request" in line for line in lines) <= 21
    assert "Traceback" not in text


def _send(api: httpx.Client, request: bytes) -> None:
    with socket.create_connection((api.base_url.host, api.base_url.port)) as connection:
        connection.sendall(request)
        connection.recv(1000)


def _leave_in_an_upload(api: httpx.Client) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9999\r\n\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="control_image"; filename="a"\r\n\r\nabc'
    with socket.create_connection((api.base_url.host, api.base_url.port)) as connection:
        connection.sendall(head + part)


def _await(api: httpx.Client, words: str) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if words in api.get("/metrics").text:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(autouse=True)
def _propagate_nothing() -> None:
    for name in ("service.test_logs", "library", "library.two"):
        logging.getLogger(name).propagate = False
