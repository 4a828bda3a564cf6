"""Following a job, by WebSocket and by server-sent events."""

import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.story import Story

JOB = "0" * 28
Follow = Callable[[str, str | None], list[dict]]


def ws_url(url: str, job_id: str = JOB, after: str | None = None) -> str:
    query = f"?after={after}" if after else ""
    return f"{url.replace('http', 'ws')}/v1/jobs/{job_id}/ws{query}"


def read_ws(socket: ClientConnection) -> Iterator[dict]:
    """Text messages until the server closes."""
    for message in socket:
        if isinstance(message, str):
            yield json.loads(message)


def follow_ws(url: str, after: str | None) -> list[dict]:
    with connect(ws_url(url, after=after), max_size=2**20) as socket:
        events = list(read_ws(socket))
        assert socket.close_code == 1000
        return events


def follow_sse(url: str, after: str | None) -> list[dict]:
    headers = {"Last-Event-ID": after} if after else {}
    with httpx.stream("GET", f"{url}/v1/jobs/{JOB}/events", headers=headers, timeout=30) as answer:
        return list(read_sse(answer))


def read_sse(answer: httpx.Response) -> Iterator[dict]:
    """Events, each checked against its SSE fields."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            event = json.loads(fields.pop("data"))
            assert fields.pop("event") == event["type"]
            if event["type"] != "snapshot":
                assert fields.pop("id") == event["seq"]
            yield event


def tell(story: Story, steps: int = 8, pause_s: float = 0) -> None:
    """A whole job."""
    story.start(JOB)
    story.stage(JOB)
    for step in range(1, steps + 1):
        time.sleep(pause_s)
        story.step(JOB, step)
    story.fail(JOB)


def await_readers(url: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while (readers := read_metric(url, "chorale_live_readers")) < count:
        assert time.monotonic() < deadline, f"{readers:.0f} of {count} came"
        time.sleep(0.05)


def read_metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


both = pytest.mark.parametrize("follow", [follow_ws, follow_sse])
