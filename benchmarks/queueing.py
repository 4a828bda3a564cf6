"""How fast jobs are accepted, and how soon a worker starts them.

    .venv/bin/python benchmarks/queueing.py --rate 50 --seconds 20
    .venv/bin/python benchmarks/queueing.py --url http://127.0.0.1:8000

Without --url a stack of its own is started, with one worker and the toy model. Two parts: POSTs at a
steady rate, each timed from when it was due, so that a slow answer does not hide the ones behind it
(their jobs are canceled at once); then single small jobs on an idle worker, from `job.queued` to
`job.started`. (The name is not `queue.py`: scripts beside it would import that for Python's own `queue`.)
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import httpx

from api_schemas.generation import GenerationRequest
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.local import LocalStack, StackOptions

SMALL = {"prompt": "benchmark", "width_px": 256, "height_px": 256, "steps": 1}


def main() -> None:
    options = parse()
    with server(options.url) as url:
        answers = asyncio.run(post_steadily(url, options.rate, options.seconds))
        report_posts(answers, options)
        await_empty(url)
        report_starts([time_start(url) for _ in range(options.jobs)])


@contextmanager
def server(url: str | None) -> Generator[str]:
    if url:
        yield url
        return
    with (
        tempfile.TemporaryDirectory(prefix="ch-") as folder,
        LocalStack(DataFolder(Path(folder)), StackOptions(models=("toy",))) as stack,
    ):
        stack.await_ready()
        yield stack.url


async def post_steadily(url: str, rate: int, seconds: float) -> list[tuple[float, int]]:
    """(seconds from due to answered, status) of each POST."""
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        began = time.perf_counter()
        posts: list[asyncio.Task[tuple[float, int, str | None]]] = []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            posts.append(asyncio.create_task(post(client, due)))
        answered = await asyncio.gather(*posts)
        for _, _, address in answered:
            if address:
                await client.post(f"{address}/cancel")
    return [(latency, status) for latency, status, _ in answered]


async def post(client: httpx.AsyncClient, due: float) -> tuple[float, int, str | None]:
    answer = await client.post("/v1/jobs", json=SMALL)
    return time.perf_counter() - due, answer.status_code, answer.headers.get("Location")


def await_empty(url: str) -> None:
    with Client(url) as client:
        while client.list(status="queued", limit=1).data or client.list(status="processing", limit=1).data:
            time.sleep(0.5)


def time_start(url: str) -> float:
    """Seconds from queued to started, both by the clocks that wrote the events."""
    with Client(url) as client:
        job = client.create(GenerationRequest.model_validate(SMALL))
        finished = client.wait(job.id, timeout_s=300)
        assert finished.started_at is not None
        return finished.started_at - finished.created_at


def report_posts(answers: list[tuple[float, int]], options: argparse.Namespace) -> None:
    latencies_ms = [latency * 1000 for latency, _ in answers]
    cuts = quantiles(latencies_ms, n=100)
    statuses = {
        status: sum(each == status for _, each in answers) for status in {each for _, each in answers}
    }
    print(f"POST at {options.rate}/s for {options.seconds:.0f} s: {statuses}")
    print(
        f"POST ms p50 {cuts[49]:.1f}, p95 {cuts[94]:.1f}, p99 {cuts[98]:.1f}, worst {max(latencies_ms):.1f}"
    )


def report_starts(starts_s: list[float]) -> None:
    print(
        f"enqueue to start ms, idle worker, {len(starts_s)} jobs: median {median(starts_s) * 1000:.1f},"
        f" worst {max(starts_s) * 1000:.1f}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--url", help="a running server; its own stack without")
    parser.add_argument("--rate", type=int, default=50, help="POSTs a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--jobs", type=int, default=20, help="jobs for the second part")
    return parser.parse_args()


if __name__ == "__main__":
    main()
