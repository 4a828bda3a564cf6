"""Tiles per second to many viewers of one API process: delivered rate, lag, and resources of the API process.

    .venv/bin/python -m benchmarks.live --clients 200 --rate 500 --seconds 20

Lag is from the moment a tile is written to Redis until a viewer holds the message it came in, taken for
the oldest tile of each message. Writer and viewers run in processes of their own, on the same machine.
"""

import argparse
import asyncio
import multiprocessing
import random
import struct
import time
from dataclasses import dataclass, field
from statistics import quantiles

import httpx
import numpy as np
import psutil
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from redis import Redis
from websockets.asyncio.client import connect

from api_schemas.events import TilePreviewed, TilePreviewedData
from api_schemas.preview_frames import PREVIEW_BATCH_TYPE, pack_preview, unpack_preview
from api_schemas.wire import LIVE_KEY, LIVE_MAXLEN, previews_key
from benchmarks.api_process import run_api

CELL_PX = 512
COLUMNS = 8
VIEWER_PROCESSES = 2


def main() -> None:
    options = parse()
    with run_api() as api:
        job_id = httpx.post(f"{api.url}/v1/jobs", json={"width_px": 4096, "height_px": 4096}).json()["id"]
        before = api.process.cpu_times()
        counts = run_viewers(api.url, api.redis_url, job_id, options)
        after = api.process.cpu_times()
        spent_s = after.user + after.system - before.user - before.system
        report(counts, options, cpu_s=spent_s, api=api.process)


@dataclass
class Count:
    """What one process of viewers got."""

    tiles: int = 0
    messages: int = 0
    lags_s: list[float] = field(default_factory=list[float])


def run_viewers(url: str, redis_url: str, job_id: str, options: argparse.Namespace) -> list[Count]:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Count] = context.Queue()
    share = options.clients // VIEWER_PROCESSES
    viewers = [
        context.Process(target=watch, args=(url, job_id, share, results), daemon=True)
        for _ in range(VIEWER_PROCESSES)
    ]
    for viewer in viewers:
        viewer.start()
    await_readers(url, share * VIEWER_PROCESSES)
    write_tiles(redis_url, job_id, options.rate, options.seconds)
    time.sleep(2)
    httpx.post(f"{url}/v1/jobs/{job_id}/cancel")
    counts = [results.get(timeout=60) for _ in viewers]
    for viewer in viewers:
        viewer.join()
    return counts


def write_tiles(redis_url: str, job_id: str, rate: int, seconds: float) -> None:
    """Write as the worker does: the newest frame of a cell, and a live entry."""
    began, written = time.perf_counter(), 0
    jpegs = draw_cells()
    with Redis.from_url(redis_url) as redis:  # pyright: ignore[reportUnknownMemberType]
        while (elapsed := time.perf_counter() - began) < seconds:
            with redis.pipeline(transaction=False) as pipeline:  # pyright: ignore[reportUnknownMemberType]
                while written < elapsed * rate:
                    cell = written % COLUMNS**2
                    left_px, top_px = cell % COLUMNS * CELL_PX, cell // COLUMNS * CELL_PX
                    frame = pack(job_id, left_px, top_px, jpegs[written % len(jpegs)])
                    pipeline.hset(previews_key(job_id), f"{left_px},{top_px}", frame)
                    pipeline.xadd(LIVE_KEY, {"job": job_id, "frame": frame}, maxlen=LIVE_MAXLEN)
                    written += 1
                pipeline.execute()
            time.sleep(0.002)


def draw_cells() -> list[bytes]:
    """64 x 64 pixels of noise on a slope: about as many bytes as a latent preview."""
    noise = np.random.default_rng(0)
    slope = np.linspace(0, 200, 64)[None, :, None]
    pictures = [(slope + noise.integers(0, 50, (64, 64, 3))).astype(np.uint8) for _ in range(16)]
    return [simplejpeg.encode_jpeg(picture, quality=70, colorspace="RGB") for picture in pictures]


def pack(job_id: str, left_px: int, top_px: int, jpeg: bytes) -> bytes:
    data = TilePreviewedData(
        left_px=left_px, top_px=top_px, width_px=CELL_PX, height_px=CELL_PX, phase="denoise", step=1
    )
    return pack_preview(TilePreviewed(job_id=job_id, attempt=1, ts=time.time(), data=data), jpeg)


def watch(url: str, job_id: str, clients: int, results: "multiprocessing.Queue[Count]") -> None:
    count = Count()
    asyncio.run(watch_all(f"{url.replace('http', 'ws')}/v1/jobs/{job_id}/ws", clients, count))
    results.put(count)


async def watch_all(address: str, clients: int, count: Count) -> None:
    await asyncio.gather(*(watch_one(address, count) for _ in range(clients)))


async def watch_one(address: str, count: Count) -> None:
    async with connect(address, max_size=2**20, compression=None, ping_interval=None) as viewer:
        async for message in viewer:
            if isinstance(message, bytes):
                now = time.time()
                tiles, first = count_tiles(message)
                count.tiles += tiles
                count.messages += 1
                if random.random() < 0.1:  # reading every one would measure this process
                    count.lags_s.append(now - unpack_preview(first)[0].ts)


def count_tiles(message: bytes) -> tuple[int, bytes]:
    """Tiles in a message, and the first of them."""
    if struct.unpack_from(">I", message)[0] != PREVIEW_BATCH_TYPE:
        return 1, message
    at, tiles = 4, 0
    (length,) = struct.unpack_from(">I", message, at)
    first = message[at + 4 : at + 4 + length]
    while at < len(message):
        at += 4 + struct.unpack_from(">I", message, at)[0]
        tiles += 1
    return tiles, first


def await_readers(url: str, expected: int) -> None:
    deadline = time.monotonic() + 60
    while (connected := read_metric(url, "chorale_live_readers")) < expected:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{connected:.0f} of {expected} viewers are connected")
        time.sleep(0.1)


def read_metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def report(counts: list[Count], options: argparse.Namespace, cpu_s: float, api: psutil.Process) -> None:
    lags_ms = [lag * 1000 for count in counts for lag in count.lags_s]
    cuts = quantiles(lags_ms, n=100)
    tiles, messages = sum(count.tiles for count in counts), sum(count.messages for count in counts)
    expected = options.rate * options.seconds * options.clients
    print(f"viewers {options.clients}, tiles/s {options.rate}, seconds {options.seconds}")
    print(f"delivered {tiles} tiles of {expected:.0f} ({tiles / expected:.1%}) in {messages} messages")
    print(f"lag ms p50 {cuts[49]:.0f}, p95 {cuts[94]:.0f}, p99 {cuts[98]:.0f}")
    print(f"API process: {cpu_s / options.seconds:.0%} of a core, {api.memory_info().rss >> 20} MiB")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rate", type=int, default=500, help="tiles a second")
    parser.add_argument("--seconds", type=float, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
