"""One API process under abuse: slow connections, many uploads at once, few descriptors.

    .venv/bin/python -m benchmarks.abuse slow --connections 1500 --seconds 30
    .venv/bin/python -m benchmarks.abuse uploads --connections 20 --megabytes 31
    .venv/bin/python -m benchmarks.abuse descriptors --connections 1500 --descriptors 1024 --seconds 30
    .venv/bin/python -m benchmarks.abuse refused --connections 50 --seconds 60
    .venv/bin/python -m benchmarks.abuse tile --seconds 10

Each prints what a usual client saw meanwhile, memory of the API process, and the size of its log.
"""

import argparse
import json
import random
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median

import httpx
import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]

from api_schemas.events import TilePreviewed, TilePreviewedData
from api_schemas.preview_frames import pack_preview
from api_schemas.wire import previews_key
from benchmarks.api_process import Api, run_api
from benchmarks.untrusted import encode_png


def main() -> None:
    options = parse()
    _raise_descriptors()
    limit = ("prlimit", f"--nofile={options.descriptors}:{options.descriptors}", sys.executable)
    with run_api(limit) as api:
        watch = Watch(api)
        with watch.running():
            {
                "slow": run_slow,
                "descriptors": run_slow,
                "uploads": run_uploads,
                "refused": run_refused,
                "tile": run_tile,
            }[options.kind](api, options)
        watch.report()


@dataclass
class Watch:
    """A usual client that asks every 50 ms, on a connection of its own each time."""

    api: Api
    waits_s: list[float] = field(default_factory=list[float])
    failures: Counter[str] = field(default_factory=Counter[str])
    peak_bytes: int = 0

    @contextmanager
    def running(self) -> Generator[None]:
        done = threading.Event()
        thread = threading.Thread(target=self._run, args=(done,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def report(self) -> None:
        waits = sorted(self.waits_s) or [0.0]
        print(
            f"usual client: {len(self.waits_s)} answers, p50 {median(waits) * 1000:.0f} ms, "
            f"p99 {waits[int(len(waits) * 0.99)] * 1000:.0f} ms; failures {dict(self.failures)}"
        )
        print(f"API: peak {self.peak_bytes >> 20} MiB, log {self.api.log.stat().st_size >> 10} KiB")

    def _run(self, done: threading.Event) -> None:
        while not done.wait(0.05):
            began = time.monotonic()
            try:
                httpx.get(f"{self.api.url}/healthz", timeout=5).raise_for_status()
                self.waits_s.append(time.monotonic() - began)
            except httpx.HTTPError as error:
                self.failures[type(error).__name__] += 1
            self.peak_bytes = max(self.peak_bytes, self.api.process.memory_info().rss)


def run_slow(api: Api, options: argparse.Namespace) -> None:
    """A third send headers, a third a JSON body, a third an upload: a byte a second."""
    heads = [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 9999999\r\n\r\n",
    ]
    slow: list[socket.socket] = []
    for number in range(options.connections):
        with suppress(OSError):
            slow.append(socket.create_connection(api.address, timeout=2))
            slow[-1].sendall(heads[number % 3])
            slow[-1].setblocking(False)
    began = time.monotonic()
    while time.monotonic() - began < options.seconds:
        time.sleep(1)
        slow = [each for each in slow if _trickle(each)]
    print(f"{len(slow)} of {options.connections} slow connections are open after {options.seconds:.0f} s")


def _trickle(connection: socket.socket) -> bool:
    """Send a byte; False if the connection was closed."""
    try:
        connection.send(b"a")
        return bool(connection.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False


def run_uploads(api: Api, options: argparse.Namespace) -> None:
    """Noise, which no compression makes smaller, in forms that are sent at the same time."""
    side_px = int((options.megabytes * 1e6 / 3) ** 0.5)
    picture = encode_png(random.randbytes(side_px * 3) for _ in range(side_px))
    request = json.dumps({"prompt": "lava", "control": {"name": "edges"}})
    statuses: Counter[int | str] = Counter()

    def post() -> None:
        files = {
            "request": (None, request, "application/json"),
            "control_image": ("a.png", picture, "image/png"),
        }
        try:
            statuses[httpx.post(f"{api.url}/v1/jobs", files=files, timeout=300).status_code] += 1
        except httpx.HTTPError as error:
            statuses[type(error).__name__] += 1

    began = time.monotonic()
    threads = [threading.Thread(target=post) for _ in range(options.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        f"{options.connections} uploads of {len(picture) / 1e6:.1f} MB in {time.monotonic() - began:.1f} s: {dict(statuses)}"
    )


def run_refused(api: Api, options: argparse.Namespace) -> None:
    """Requests that are refused, by every kind of refusal, as fast as connections allow."""
    cut = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    kinds = [b"nonsense\r\n\r\n", b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", cut]
    ends = time.monotonic() + options.seconds
    sent = Counter[int]()

    def send() -> None:
        while time.monotonic() < ends:
            kind = random.randrange(3)
            with suppress(OSError), socket.create_connection(api.address, timeout=2) as connection:
                connection.sendall(kinds[kind])
                if kind < 2:
                    connection.recv(4096)
                sent[kind] += 1

    threads = [threading.Thread(target=send) for _ in range(options.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sent.total()} refused requests in {options.seconds:.0f} s")


def run_tile(api: Api, options: argparse.Namespace) -> None:
    """The smallest tile of a running 8192² job, asked for by one client as fast as it is answered."""
    body = {"prompt": "lava", "width_px": 8192, "height_px": 8192}
    job_id = str(httpx.post(f"{api.url}/v1/jobs", json=body).raise_for_status().json()["id"])
    for left_px in range(0, 8192, 512):
        for top_px in range(0, 8192, 512):
            frame = _preview(job_id, left_px, top_px)
            api.redis.hset(previews_key(job_id), f"{left_px},{top_px}", frame)  # pyright: ignore[reportUnknownMemberType]
    count, ends, began = 0, time.monotonic() + options.seconds, sum(api.process.cpu_times()[:2])
    with httpx.Client(base_url=api.url) as client:
        while time.monotonic() < ends:
            client.get(f"/v1/jobs/{job_id}/tiles/0/0_0").raise_for_status()
            count += 1
    spent_ms = (sum(api.process.cpu_times()[:2]) - began) / count * 1000
    print(f"{count / options.seconds:.0f} tiles a second; {spent_ms:.1f} ms of CPU each")


def _preview(job_id: str, left_px: int, top_px: int) -> bytes:
    data = TilePreviewedData(
        left_px=left_px, top_px=top_px, width_px=512, height_px=512, phase="denoise", step=1
    )
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=80, colorspace="RGB")
    return pack_preview(TilePreviewed(job_id=job_id, attempt=1, ts=time.time(), data=data), jpeg)


def _raise_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("kind", choices=("slow", "uploads", "descriptors", "refused", "tile"))
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=31)
    parser.add_argument("--descriptors", type=int, default=16_384, help="limit of the API process")
    parser.add_argument("--seconds", type=float, default=30)
    return parser.parse_args()


if __name__ == "__main__":
    main()
