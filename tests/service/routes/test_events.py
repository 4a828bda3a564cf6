"""Following a job over SSE and WebSocket: each event once, in order, whatever happens to the connection."""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import pytest
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api_schemas.answers import Snapshot
from api_schemas.wire import events_key
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.routes.following import JOB, Follow, await_readers, both, follow_ws, read_ws, tell, ws_url
from tests.story import Story


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
    published, unpublished = Story(redis), Story(redis, live_key="chorale:elsewhere")
    published.queue(JOB)
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow, url, None)
        await_readers(url, 1)
        time.sleep(0.2)
        published.start(JOB)
        for step in range(1, 20):
            (unpublished if step % 3 else published).step(JOB, step)
            time.sleep(0.02)
        unpublished.fail(JOB)  # nothing follows that could show the gap
        assert [event["seq"] for event in follower.result(timeout=30)] == [e.seq for e in published.log(JOB)]


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


def test_an_unknown_job_is_refused_before_the_handshake(url: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        connect(ws_url(url))
    assert refusal.value.response.status_code == 404
    assert json.loads(refusal.value.response.body)["code"] == "not_found"
