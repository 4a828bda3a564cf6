"""One API process on one core under load that does not wait for it: POST, GET of queued jobs, lists, sockets, too much.

    .venv/bin/python -m benchmarks.load
    .venv/bin/python -m benchmarks.load --against ../before --rounds 3

Each call is timed from when it was due. The API has core 0 for itself, clients and queue server have the others.
With --against the API of a second checkout is measured in turns with this one, and medians of all rounds are given.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median, quantiles

import httpx

from benchmarks.api_process import Api, run_api
from benchmarks.open_loop import Tally, Watcher, call_steadily, get, pin, post
from benchmarks.step_writer import Writer

BODY = b'{"prompt": "benchmark", "width_px": 256, "height_px": 256}'
WAITING = 500


Figures = dict[str, float]
Scenario = Callable[[Api, argparse.Namespace], Figures]


def main() -> None:
    options = parse()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)) or {0})
    folders = {"before": options.against, "after": Path.cwd()} if options.against else {"": Path.cwd()}
    for name in options.only:
        found: dict[str, list[Figures]] = {}
        for _ in range(options.rounds):
            for label, folder in folders.items():
                with api_of(folder) as api:
                    found.setdefault(label, []).append(SCENARIOS[name](api, options))
        for label, rounds in found.items():
            show(f"{name} {label}".strip(), rounds)


def create(api: Api, count: int) -> list[str]:
    tally = asyncio.run(call_steadily(api.url, 50, count / 50, lambda _: post("/v1/jobs", BODY)))
    return [json.loads(body)["id"] for body in tally.bodies]


def api_of(folder: Path) -> AbstractContextManager[Api]:
    """The API of a checkout, by its own environment if it has one, on the first core."""
    python = folder / ".venv" / "bin" / "python"
    command = (str(python) if python.exists() else sys.executable,)
    return run_api(command, {"CHORALE_MAX_QUEUED": "1000000"}, folder, pin({0}))


def post_jobs(api: Api, options: argparse.Namespace) -> Figures:
    with cpu_of(api) as used:
        tally = call(api, options.posts, options.seconds, lambda _: post("/v1/jobs", BODY))
    return describe(tally) | used


def get_queued(api: Api, options: argparse.Namespace) -> Figures:
    ids = create(api, WAITING)
    with cpu_of(api) as used:
        tally = call(api, options.gets, options.seconds, lambda n: get(f"/v1/jobs/{ids[n % WAITING]}"))
    return describe(tally) | used


def list_queued(api: Api, options: argparse.Namespace) -> Figures:
    create(api, WAITING)
    with cpu_of(api) as used:
        tally = call(api, options.lists, options.seconds, lambda _: get("/v1/jobs"))
    return describe(tally) | used


def overload(api: Api, options: argparse.Namespace) -> Figures:
    """Reads and writes at many times what one core can answer."""
    ids = create(api, WAITING)

    def request(number: int) -> bytes:
        return get(f"/v1/jobs/{ids[number % WAITING]}") if number % 2 else post("/v1/jobs", BODY)

    tally = call(api, options.overload, options.seconds, request)
    began = time.perf_counter()
    httpx.get(f"{api.url}/v1/jobs/{ids[0]}", timeout=60)
    after_ms = (time.perf_counter() - began) * 1000
    return describe(tally) | {
        "503 p50 ms": tally.percentile(50, 503),
        "503 p99 ms": tally.percentile(99, 503),
        "503 with Retry-After": float(tally.waits.total()),
        "GET after it ms": after_ms,
        "MiB": api.process.memory_info().rss / 2**20,
    }


def follow_apart(api: Api, options: argparse.Namespace) -> Figures:
    """Twenty viewers of each job; each job has a step and a preview a second."""
    return follow(api, options, jobs=max(1, options.sockets // 20), rate=1.0)


def follow_one(api: Api, options: argparse.Namespace) -> Figures:
    """All viewers of one job, which has a step and a preview each half second."""
    return follow(api, options, jobs=1, rate=2.0)


def follow(api: Api, options: argparse.Namespace, jobs: int, rate: float) -> Figures:
    ids = create(api, jobs)
    watchers, used = asyncio.run(watch(api, ids, options, Writer(api.redis, ids, rate)))
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
    api: Api, ids: list[str], options: argparse.Namespace, writer: Writer
) -> tuple[list[Watcher], Figures]:
    """Connect all, then let the writer begin."""
    watchers = [await connect(api, ids[number % len(ids)]) for number in range(options.sockets)]
    for watcher in watchers:
        await watcher.first_text.wait()
    with cpu_of(api) as used:
        writer.start()
        await asyncio.sleep(options.seconds)
        writer.done = True
    await asyncio.sleep(2)
    return watchers, used


async def connect(api: Api, job_id: str) -> Watcher:
    port, path = int(api.url.rpartition(":")[2]), f"/v1/jobs/{job_id}/ws"
    return (await asyncio.get_running_loop().create_connection(lambda: Watcher(path), "127.0.0.1", port))[1]


def call(api: Api, rate: float, seconds: float, request: Callable[[int], bytes]) -> Tally:
    return asyncio.run(call_steadily(api.url, rate, seconds, request))


def describe(tally: Tally) -> Figures:
    percents = {f"p{percent} ms": tally.percentile(percent) for percent in (50, 95, 99)}
    return percents | {f"status {status}": float(count) for status, count in tally.counts().items()}


@contextmanager
def cpu_of(api: Api) -> Generator[Figures]:
    """Fills in the share of a core that the API used within the block."""
    used: Figures = {}
    before, began = api.process.cpu_times(), time.perf_counter()
    yield used
    after, seconds = api.process.cpu_times(), time.perf_counter() - began
    used["% of a core"] = (after.user + after.system - before.user - before.system) / seconds * 100


def show(title: str, rounds: list[Figures]) -> None:
    print(f"{title}, median of {len(rounds)}:")
    for name in dict.fromkeys(name for figures in rounds for name in figures):
        values = [figures.get(name, 0.0) for figures in rounds]
        print(
            f"  {name}: {median(values):.0f}  ({', '.join(f'{value:.0f}' for value in values)})", flush=True
        )


SCENARIOS: dict[str, Scenario] = {
    "post": post_jobs,
    "get": get_queued,
    "list": list_queued,
    "apart": follow_apart,
    "one": follow_one,
    "overload": overload,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--posts", type=int, default=200, help="a second")
    parser.add_argument("--gets", type=int, default=500, help="a second")
    parser.add_argument("--lists", type=int, default=40, help="a second")
    parser.add_argument("--overload", type=int, default=3000, help="POSTs and GETs a second")
    parser.add_argument("--sockets", type=int, default=2000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
