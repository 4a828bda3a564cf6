"""What is live: previews, slow readers, crowds."""

import asyncio
import json
import time

import httpx
import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from api_schemas.preview_frames import unpack_batch, unpack_preview
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.routes.following import (
    JOB,
    await_readers,
    follow_ws,
    read_metric,
    read_ws,
    ws_url,
)
from tests.story import Story


def test_a_late_viewer_sees_the_whole_canvas_first(url: str, story: Story) -> None:
    story.queue(JOB)
    story.start(JOB)
    for left_px in range(0, 4096, 512):
        story.preview(JOB, left_px, 0, level=10)
    newest = {left_px: story.preview(JOB, left_px, 0, level=200) for left_px in range(0, 4096, 512)}
    with connect(ws_url(url)) as socket:
        frames: list[bytes] = []
        while isinstance(message := socket.recv(timeout=30), bytes):
            frames += unpack_batch(message)
    assert sorted(frames) == sorted(newest.values())


def test_previews_arrive_live_and_byte_for_byte(url: str, story: Story) -> None:
    story.queue(JOB)
    with connect(ws_url(url)) as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"
        sent = [story.preview(JOB, 512 * n, 0, level=n) for n in range(20)]
        story.cancel(JOB)
        messages = list(socket)
    frames = [frame for each in messages if isinstance(each, bytes) for frame in unpack_batch(each)]
    assert frames == sent
    assert [unpack_preview(frame)[0].data.left_px for frame in frames] == [512 * n for n in range(20)]
    assert len(messages) < 20  # they were sent together
    assert isinstance(messages[-1], str)  # the terminal event comes last


def test_sse_carries_no_previews_but_signs_of_life(url: str, story: Story) -> None:
    story.queue(JOB)
    lines: list[str] = []
    with httpx.stream("GET", f"{url}/v1/jobs/{JOB}/events") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            lines.append(line)
            if line == ": still here":
                story.preview(JOB, 0, 0, level=1)
                story.cancel(JOB)
    assert ": still here" in lines
    assert [line for line in lines if line.startswith("event")] == [
        "event: job.queued",
        "event: job.canceled",
    ]


def test_a_slow_reader_loses_previews_only_and_gets_the_newest_later(
    serve_with: Serve, settings: ServiceSettings, story: Story
) -> None:
    url = serve_with(settings)
    story.queue(JOB)
    story.start(JOB)
    with connect(ws_url(url), max_queue=1) as socket:
        newest: dict[str, bytes] = {}
        for step in range(1, 40):  # far more than socket buffers and mailbox hold
            story.step(JOB, step)
            for cell in range(40):
                newest[f"{cell}"] = story.preview(JOB, cell * 512, 0, level=step, side_px=4096)
            time.sleep(0.01)
        story.fail(JOB)
        time.sleep(1)
        texts: list[str] = []
        got: dict[str, bytes] = {}
        for message in socket:
            if isinstance(message, str):
                texts.append(json.loads(message)["seq"])
                continue
            for frame in unpack_batch(message):
                got[str(unpack_preview(frame)[0].data.left_px // 512)] = frame
        assert socket.close_code == 1000
    assert texts == [event.seq for event in story.log(JOB)]
    assert got == newest
    dropped = read_metric(url, "chorale_previews_dropped_total")
    assert dropped > 0


def test_a_reader_that_takes_nothing_is_let_go_and_can_come_back(
    serve_with: Serve, settings: ServiceSettings, story: Story
) -> None:
    url = serve_with(settings.model_copy(update={"send_timeout_s": 1.0}))
    story.queue(JOB)
    story.start(JOB)
    seen: list[str] = []
    with connect(ws_url(url), max_queue=1) as socket:
        deadline = time.monotonic() + 15
        while read_metric(url, "chorale_live_readers") and time.monotonic() < deadline:
            for cell in range(40):
                story.preview(JOB, cell * 512, 0, level=cell, side_px=4096)
            time.sleep(0.02)
        assert read_metric(url, "chorale_live_readers") == 0  # the mailbox is gone, memory with it
        with pytest.raises(ConnectionClosed) as closed:
            seen.extend(event["seq"] for event in read_ws(socket))
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1013
    story.fail(JOB)
    seen += [event["seq"] for event in follow_ws(url, seen[-1])]
    assert seen == [event.seq for event in story.log(JOB)]


def test_hundreds_of_viewers_may_come_at_the_same_moment(
    serve_with: Serve, settings: ServiceSettings, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is refused for want of a connection; here they share one core with the server, which may take long."""
    for name in ("_ANSWER_TIMEOUT_S", "_STREAM_TIMEOUT_S"):
        monkeypatch.setattr(f"service.app.{name}", 60.0)
    url = serve_with(settings)
    story.queue(JOB)

    async def watch() -> list[str]:
        async with connect_async(ws_url(url), open_timeout=60) as viewer:
            return [json.loads(message)["type"] async for message in viewer]

    async def watch_all() -> list[list[str]]:
        viewers = [asyncio.create_task(watch()) for _ in range(300)]
        arrival = asyncio.create_task(asyncio.to_thread(await_readers, url, 300))
        # Whoever is through before the job's end was refused, and tells why.
        await asyncio.wait([arrival, *viewers], return_when=asyncio.FIRST_COMPLETED)
        story.cancel(JOB)
        return await asyncio.gather(*viewers)

    assert asyncio.run(watch_all()) == [["job.queued", "job.canceled"]] * 300


def test_what_clients_say_is_ignored(url: str, story: Story) -> None:
    story.queue(JOB)
    with connect(ws_url(url)) as socket:
        for _ in range(50):
            socket.send("hello" * 100)
            socket.send(b"\x00" * 1000)
        story.cancel(JOB)
        assert [event["type"] for event in read_ws(socket)] == ["job.queued", "job.canceled"]
