"""Viewers of one API process: those that follow, those that do not read, and those whose connections break."""

import argparse
import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import NamedTuple, cast

from api_schemas.wire import events_key
from benchmarks.api_process import Api, Figures
from benchmarks.open_loop import Watcher, call_steadily, post
from benchmarks.step_writer import Writer

STALLED = 100
STALLED_RATE = 500.0  # steps and previews a second: over a megabyte, which fills what the kernel holds
SMALL_BUFFER = 4096
CATCH_UP_S = 30


class Made(NamedTuple):
    """A job, and the API key that made it, if keys are used."""

    id: str
    key: str


def create(api: Api, count: int) -> list[Made]:
    """Jobs that no worker takes, by all keys in turn. The seed says which key it was."""

    def request(number: int) -> bytes:
        body = {"prompt": "benchmark", "width_px": 256, "height_px": 256, "seed": number}
        return post("/v1/jobs", json.dumps(body).encode(), api.key(number))

    tally = asyncio.run(call_steadily(api.url, 50, count / 50, request))
    views = map(json.loads, tally.bodies)
    return [Made(view["id"], api.key(view["request"]["seed"])) for view in views]


def follow_apart(api: Api, options: argparse.Namespace) -> Figures:
    """Twenty viewers of each job; each job has a step and a preview a second."""
    return follow(api, options, jobs=max(1, options.sockets // 20), rate=1.0)


def follow_one(api: Api, options: argparse.Namespace) -> Figures:
    """All viewers of one job, which has a step and a preview each half second."""
    return follow(api, options, jobs=1, rate=2.0)


def follow(api: Api, options: argparse.Namespace, jobs: int, rate: float) -> Figures:
    made = create(api, jobs)
    watchers, used = asyncio.run(watch(api, made, options, rate))
    lags_ms = [
        (at - event["ts"]) * 1000
        for watcher in watchers
        for at, text in watcher.texts()
        if (event := json.loads(text))["type"] == "step.completed"
    ]
    cuts = quantiles(lags_ms, n=100)
    return {
        "events": len(lags_ms),
        "lost sockets": sum(watcher.closed for watcher in watchers),
        "lag p50 ms": cuts[49],
        "lag p99 ms": cuts[98],
        "MiB": api.process.memory_info().rss / 2**20,
    } | used


async def watch(
    api: Api, made: list[Made], options: argparse.Namespace, rate: float
) -> tuple[list[Watcher], Figures]:
    """Connect all, then let the writer begin."""
    watchers = [await connect(api, made[number % len(made)]) for number in range(options.sockets)]
    for watcher in watchers:
        await watcher.first_text.wait()
    with api.count_cpu() as used:
        async with writing(api, made, rate):
            await asyncio.sleep(options.seconds)
    await asyncio.sleep(2)
    return watchers, used


def stall(api: Api, options: argparse.Namespace) -> Figures:
    """Viewers of one job who do not read, while it has far more steps and previews than jobs have."""
    made = create(api, 1)
    with api.count_growth() as grown:
        closed = asyncio.run(watch_stalled(api, made, options.seconds))
    return {"stalled": STALLED, "of them closed": closed} | grown


async def watch_stalled(api: Api, made: list[Made], seconds: float) -> int:
    """How many the API has closed."""
    watchers = [await connect(api, made[0], buffer=SMALL_BUFFER) for _ in range(STALLED)]
    for watcher in watchers:
        await watcher.first_text.wait()
        watcher.stop_reading()
    async with writing(api, made, STALLED_RATE):
        await asyncio.sleep(seconds)
    for watcher in watchers:
        watcher.read_on()
    await asyncio.sleep(2)
    return sum(watcher.closed for watcher in watchers)


def tear(api: Api, options: argparse.Namespace) -> Figures:
    """Twenty viewers of each job; each second a tenth of all, drawn at random, loses its connection and comes again."""
    made = create(api, max(1, options.sockets // 20))
    viewers = [Viewer(api, made[number % len(made)]) for number in range(options.sockets)]
    torn = asyncio.run(watch_torn(api, made, viewers, options.seconds))
    logs = {job.id: read_log(api, job.id) for job in made}
    received = [(viewer.seqs(), logs[viewer.job.id]) for viewer in viewers]
    return {
        "disconnects": torn,
        "events": sum(len(seqs) for seqs, _ in received),
        "missed": sum(len(set(log) - set(seqs)) for seqs, log in received),
        "twice": sum(len(seqs) - len(set(seqs)) for seqs, _ in received),
        "viewers with another log than the job's": sum(seqs != log for seqs, log in received),
    }


class Viewer:
    """Follows a job over any number of connections."""

    def __init__(self, api: Api, job: Made) -> None:
        self.job = job
        self._api, self._watchers = api, list[Watcher]()

    async def connect(self) -> None:
        """Again, if it was connected, after the last event that it has."""
        for watcher in self._watchers[-1:]:
            watcher.break_off()
        seqs = self.seqs()
        self._watchers.append(await connect(self._api, self.job, after=seqs[-1] if seqs else ""))

    def seqs(self) -> list[str]:
        return [json.loads(text)["seq"] for each in self._watchers for _, text in each.texts()]


async def watch_torn(api: Api, made: list[Made], viewers: list[Viewer], seconds: float) -> int:
    """How many connections broke."""
    torn = 0
    for viewer in viewers:
        await viewer.connect()
    async with writing(api, made, rate=2.0):
        ends_at = time.monotonic() + seconds
        while (began := time.monotonic()) < ends_at:
            for viewer in random.sample(viewers, max(1, len(viewers) // 10)):
                await viewer.connect()
                torn += 1
            await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))
    last = {job.id: read_log(api, job.id)[-1] for job in made}
    await _await_that(lambda: all(last[viewer.job.id] in viewer.seqs()[-1:] for viewer in viewers))
    return torn


def read_log(api: Api, job_id: str) -> list[str]:
    """The `seq` of each event."""
    rows = api.redis.xrange(events_key(job_id))  # pyright: ignore[reportUnknownMemberType]
    return [seq.decode() for seq, _ in cast(list[tuple[bytes, object]], rows)]


@asynccontextmanager
async def writing(api: Api, made: list[Made], rate: float) -> AsyncGenerator[None]:
    """Steps and previews of these jobs, so many a second of each, within the block."""
    writer = Writer(api.redis, [job.id for job in made], rate)
    writer.start()
    try:
        yield
    finally:
        writer.done = True
        await asyncio.to_thread(writer.join)


async def connect(api: Api, job: Made, *, after: str = "", buffer: int = 0) -> Watcher:
    """
    Args:
        buffer: bytes that the kernel may hold for a client that does not read; 0: as ever.
    """
    client = socket.socket(proto=socket.IPPROTO_TCP)
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.setblocking(False)
    loop, path = asyncio.get_running_loop(), f"/v1/jobs/{job.id}/ws" + (f"?after={after}" if after else "")
    await loop.sock_connect(client, api.address)
    return (await loop.create_connection(lambda: Watcher(path, job.key), sock=client))[1]


async def _await_that(holds: Callable[[], bool]) -> None:
    """Or until it is plain that it will not hold."""
    for _ in range(2 * CATCH_UP_S):
        if holds():
            return
        await asyncio.sleep(0.5)
