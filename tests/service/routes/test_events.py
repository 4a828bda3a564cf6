"""Following a job over SSE and WebSocket: each event once, in order, whatever happens to the connection."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import pytest
from redis import Redis
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api_schemas.answers import Snapshot
from api_schemas.wire import events_key, unpack_batch, unpack_preview
from service.settings import ServiceSettings
from tests.service.conftest import Serve
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


both = pytest.mark.parametrize("follow", [follow_ws, follow_sse])


@both
def test_a_finished_job_is_replayed_from_any_place(url: str, story: Story, follow: Follow) -> None:
    story.queue(JOB)
    tell(story)
    log = [json.loads(event.model_dump_json()) for event in story.log(JOB)]
    for seen in range(len(log) + 1):
        after = log[seen - 1]["seq"] if seen else None
        assert follow(url, after) == log[seen:]


@both
def test_followers_of_a_running_job_miss_nothing_wherever_they_begin(
    url: str, story: Story, follow: Follow
) -> None:
    story.queue(JOB)
    writer = threading.Thread(target=tell, args=(story, 30, 0.01))
    writer.start()
    with ThreadPoolExecutor(24) as pool:
        began = []
        for _ in range(24):  # all along the job, from the beginning and from the last event of then
            last = story.job(JOB).seq
            began += [(None, pool.submit(follow, url, None)), (last, pool.submit(follow, url, last))]
            time.sleep(0.012)
        writer.join()
        log = [event.seq for event in story.log(JOB)]
        for after, future in began:
            expected = log[log.index(after) + 1 :] if after else log
            assert [event["seq"] for event in future.result()] == expected


@pytest.mark.parametrize("seed", range(3))
def test_a_line_that_breaks_again_and_again_gives_no_gap_and_no_duplicate(
    url: str, story: Story, seed: int
) -> None:
    story.queue(JOB)
    writer = threading.Thread(target=tell, args=(story, 60, 0.005))
    writer.start()
    chance = random.Random(seed)
    seen: list[str] = []
    while not seen or seen[-1] != story.job(JOB).seq or writer.is_alive():
        # With a queue of its own limit a socket that is left waits ten seconds for what nobody reads.
        with connect(ws_url(url, after=seen[-1] if seen else None), max_queue=None) as socket:
            for count, event in enumerate(read_ws(socket)):
                seen.append(event["seq"])
                if count >= chance.randrange(6):
                    break
    writer.join()
    assert seen == [event.seq for event in story.log(JOB)]


@both
def test_what_was_trimmed_is_told_as_a_snapshot(url: str, story: Story, redis: Redis, follow: Follow) -> None:
    story.queue(JOB)
    tell(story)
    log = [event.seq for event in story.log(JOB)]
    redis.xtrim(events_key(JOB), maxlen=4, approximate=False)
    for seen in range(len(log)):
        events = follow(url, log[seen - 1] if seen else None)
        kept = len(log) - 4
        if seen > kept:  # the client has at least the first of those that are kept
            assert [event["seq"] for event in events] == log[seen:]
            continue
        assert [event["type"] for event in events] == ["snapshot", "job.failed"]
        assert Snapshot.model_validate(events[0]).data == story.job(JOB)


@both
def test_events_that_the_live_stream_lost_are_found_in_the_log(
    serve_with: Serve, settings: ServiceSettings, redis: Redis, follow: Follow
) -> None:
    url = serve_with(settings.model_copy(update={"ping_interval_s": 2.0}))
    heard, unheard = Story(redis), Story(redis, live_key="chorale:elsewhere")
    heard.queue(JOB)
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow, url, None)
        _await_readers(url, 1)
        time.sleep(0.2)
        heard.start(JOB)
        for step in range(1, 20):
            (unheard if step % 3 else heard).step(JOB, step)
            time.sleep(0.02)
        unheard.fail(JOB)  # nothing follows that could show the gap
        assert [event["seq"] for event in follower.result(timeout=30)] == [e.seq for e in heard.log(JOB)]


def test_a_snapshot_of_a_running_job_goes_on_live(url: str, story: Story, redis: Redis) -> None:
    story.queue(JOB)
    story.start(JOB)
    for step in range(1, 6):
        story.step(JOB, step)
    redis.xtrim(events_key(JOB), maxlen=1, approximate=False)
    with connect(ws_url(url)) as socket:
        messages = read_ws(socket)
        snapshot, repeated = next(messages), next(messages)
        assert snapshot["type"] == "snapshot"
        assert snapshot["seq"] == repeated["seq"] == story.job(JOB).seq
        added = [story.step(JOB, 6), story.fail(JOB)]
        assert [event["seq"] for event in messages] == added


def test_a_log_that_is_gone_altogether_still_ends(url: str, story: Story, redis: Redis) -> None:
    story.queue(JOB)
    tell(story)
    redis.delete(events_key(JOB))
    with connect(ws_url(url)) as socket:
        assert [event["type"] for event in read_ws(socket)] == ["snapshot"]


def test_a_place_in_the_future_is_taken_for_the_present(url: str, story: Story) -> None:
    story.queue(JOB)
    with connect(ws_url(url, after="99999999999999-0")) as socket:
        time.sleep(0.2)
        seq = story.start(JOB)
        assert json.loads(socket.recv(timeout=30))["seq"] == seq


def test_whoever_has_seen_all_is_told_not_to_come_back(url: str, story: Story) -> None:
    story.queue(JOB)
    tell(story)
    last = story.job(JOB).seq
    assert httpx.get(f"{url}/v1/jobs/{JOB}/events", params={"after": last}).status_code == 204
    assert follow_ws(url, last) == []


@pytest.mark.parametrize("after", ["x", "1", "-", "1-2-3", "-1-0", "99999999999999999999-0", "1-٣"])
def test_a_place_that_is_none_is_refused(url: str, story: Story, after: str) -> None:
    story.queue(JOB)
    answer = httpx.get(f"{url}/v1/jobs/{JOB}/events", params={"after": after})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "after")
    header = httpx.get(f"{url}/v1/jobs/{JOB}/events", headers={"Last-Event-ID": after.encode()})
    assert (header.status_code, header.json()["errors"][0]["field"]) == (422, "Last-Event-ID")
    with pytest.raises(InvalidStatus) as refusal:
        connect(ws_url(url, after=quote(after)))
    assert refusal.value.response.status_code == 422


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
    dropped = _metric(url, "chorale_previews_dropped_total")
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
        while _metric(url, "chorale_live_readers") and time.monotonic() < deadline:
            for cell in range(40):
                story.preview(JOB, cell * 512, 0, level=cell, side_px=4096)
            time.sleep(0.02)
        assert _metric(url, "chorale_live_readers") == 0  # the mailbox is gone, memory with it
        with pytest.raises(ConnectionClosed) as closed:
            seen.extend(event["seq"] for event in read_ws(socket))
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1013
    story.fail(JOB)
    seen += [event["seq"] for event in follow_ws(url, seen[-1])]
    assert seen == [event.seq for event in story.log(JOB)]


def test_pages_of_other_sites_may_not_listen(url: str, story: Story) -> None:
    story.queue(JOB)
    story.cancel(JOB)
    host = url.removeprefix("http://")
    for origin in ("http://evil.example", "null", f"http://evil.example?{host}", f"{url}.evil.example"):
        with pytest.raises(InvalidStatus) as refusal:
            connect(ws_url(url), origin=origin)
        assert refusal.value.response.status_code == 403
        assert json.loads(refusal.value.response.body)["code"] == "forbidden"
    with connect(ws_url(url), origin=url) as socket:
        assert len(list(socket)) == 2


def test_an_unknown_job_is_refused_before_the_handshake(url: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        connect(ws_url(url))
    assert refusal.value.response.status_code == 404
    assert json.loads(refusal.value.response.body)["code"] == "not_found"


def test_hundreds_of_viewers_may_come_at_the_same_moment(url: str, story: Story) -> None:
    story.queue(JOB)

    async def watch() -> list[str]:
        async with connect_async(ws_url(url), open_timeout=60) as viewer:
            return [json.loads(message)["type"] async for message in viewer]

    async def watch_all() -> list[list[str]]:
        viewers = [asyncio.create_task(watch()) for _ in range(300)]
        arrival = asyncio.create_task(asyncio.to_thread(_await_readers, url, 300))
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


def _await_readers(url: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while (readers := _metric(url, "chorale_live_readers")) < count:
        assert time.monotonic() < deadline, f"{readers:.0f} of {count} came"
        time.sleep(0.05)


def _metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])
