"""Streams and waits end with the key that opened them."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from chorale.key_records import KeyRecords
from tests.service.routes.following import JOB, ws_url
from tests.service.tenants import Tenants, bearer
from tests.story import Story


def test_open_streams_end_with_their_key_and_no_others(tenants: Tenants, story: Story, url: str) -> None:
    story.queue(JOB, key_id=tenants.key_id(tenants.ann))
    own, others = bearer(tenants.key(tenants.ann)), bearer(tenants.key(tenants.operator))
    with (
        connect(ws_url(url), additional_headers=own) as socket,
        connect(ws_url(url), additional_headers=others) as other,
        httpx.stream("GET", f"{url}/v1/jobs/{JOB}/events", headers=own, timeout=30) as events,
    ):
        for each in (socket, other):
            assert json.loads(each.recv(timeout=30))["type"] == "job.queued"
        tenants.records.rotate("ann", overlap_s=0)
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
        assert "event: job.queued" in list(events.iter_lines())  # it ends too
        story.start(JOB)
        assert json.loads(other.recv(timeout=30))["type"] == "job.started"


def test_streams_of_nobody_end_once_there_is_a_key(
    api: httpx.Client, records: KeyRecords, story: Story, url: str
) -> None:
    story.queue(JOB)
    with ExitStack() as streams:
        socket = streams.enter_context(connect(ws_url(url)))
        events = streams.enter_context(httpx.stream("GET", f"{url}/v1/jobs/{JOB}/events", timeout=30))
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"
        with pytest.raises(TimeoutError):  # there is none, and they go on
            socket.recv(timeout=1.2)
        key = records.create("operator", frozenset({"read", "admin"}))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
        assert list(events.iter_lines())[-1] == ""
    with connect(ws_url(url), additional_headers=bearer(key)) as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"


def test_who_waits_for_a_job_is_refused_once_the_key_is_accepted_no_more(
    api: httpx.Client, records: KeyRecords, story: Story
) -> None:
    """So is nobody, once there is a key; what was taken stays."""

    def wait(key: dict[str, str]) -> httpx.Response:
        return api.post("/v1/jobs", json={"prompt": "lava"}, headers=key | {"Prefer": "wait=20"})

    def await_jobs(count: int, key: dict[str, str]) -> None:
        while len(api.get("/v1/jobs", headers=key).json()["data"]) < count:
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        nobodys = pool.submit(wait, {})
        await_jobs(1, {})
        operator = bearer(records.create("operator", frozenset({"read", "admin"})))
        answers = [nobodys.result()]
        anns = pool.submit(wait, bearer(records.create("ann", frozenset({"create", "read"}))))
        await_jobs(2, operator)
        records.revoke("ann")
        answers.append(anns.result())
    assert [(each.status_code, each.json()["code"]) for each in answers] == [(401, "unauthenticated")] * 2
    assert {job["status"] for job in api.get("/v1/jobs", headers=operator).json()["data"]} == {"queued"}
