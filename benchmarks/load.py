"""One API process on one core under load that does not wait for it: POST, GET of queued jobs, lists, sockets, too much.

    .venv/bin/python -m benchmarks.load
    .venv/bin/python -m benchmarks.load --keys 100
    .venv/bin/python -m benchmarks.load --against ../before --rounds 3

Each call is timed from when it was due. The API has core 0 for itself, clients and queue server have the others.
With --against the API of a second checkout is measured in turns with this one, and medians of all rounds are given.
"""

import argparse
import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

import httpx

from benchmarks.api_process import Api, Figures, run_api
from benchmarks.following import Made, create, follow_apart, follow_one, stall, tear
from benchmarks.open_loop import Tally, call_steadily, get, pin, post

BODY = b'{"prompt": "benchmark", "width_px": 256, "height_px": 256}'
WAITING = 500

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
                with api_of(folder, options.keys) as api:
                    found.setdefault(label, []).append(SCENARIOS[name](api, options))
        for label, rounds in found.items():
            show(f"{name} {label}".strip(), rounds)


def api_of(folder: Path, keys: int) -> AbstractContextManager[Api]:
    """The API of a checkout, by its own environment if it has one, on the first core."""
    python = folder / ".venv" / "bin" / "python"
    command = (str(python) if python.exists() else sys.executable,)
    return run_api(command, {"CHORALE_MAX_QUEUED": "1000000"}, folder, pin({0}), keys)


def post_jobs(api: Api, options: argparse.Namespace) -> Figures:
    with api.count_cpu() as used:
        tally = call(api, options.posts, options.seconds, lambda n: post("/v1/jobs", BODY, api.key(n)))
    return describe(tally) | used


def get_queued(api: Api, options: argparse.Namespace) -> Figures:
    jobs = create(api, WAITING)
    with api.count_cpu() as used:
        tally = call(api, options.gets, options.seconds, lambda n: read_one(jobs, n))
    return describe(tally) | used


def list_queued(api: Api, options: argparse.Namespace) -> Figures:
    create(api, WAITING)
    with api.count_cpu() as used:
        tally = call(api, options.lists, options.seconds, lambda n: get("/v1/jobs", api.key(n)))
    return describe(tally) | used


def overload(api: Api, options: argparse.Namespace) -> Figures:
    """Reads and writes at many times what one core can answer."""
    jobs = create(api, WAITING)

    def request(number: int) -> bytes:
        return read_one(jobs, number) if number % 2 else post("/v1/jobs", BODY, api.key(number))

    tally = call(api, options.overload, options.seconds, request)
    began = time.perf_counter()
    headers = {"Authorization": f"Bearer {jobs[0].key}"} if jobs[0].key else {}
    httpx.get(f"{api.url}/v1/jobs/{jobs[0].id}", headers=headers, timeout=60).raise_for_status()
    after_ms = (time.perf_counter() - began) * 1000
    return describe(tally) | {
        "503 p50 ms": tally.percentile(50, 503),
        "503 p99 ms": tally.percentile(99, 503),
        "503 with Retry-After": float(tally.waits.total()),
        "GET after it ms": after_ms,
        "MiB": api.process.memory_info().rss / 2**20,
    }


def read_one(jobs: list[Made], number: int) -> bytes:
    """By the key that made it."""
    job = jobs[number % len(jobs)]
    return get(f"/v1/jobs/{job.id}", job.key)


def call(api: Api, rate: float, seconds: float, request: Callable[[int], bytes]) -> Tally:
    return asyncio.run(call_steadily(api.url, rate, seconds, request))


def describe(tally: Tally) -> Figures:
    percents = {f"p{percent} ms": tally.percentile(percent) for percent in (50, 95, 99)}
    return percents | {f"status {status}": float(count) for status, count in tally.counts().items()}


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
    "stalled": stall,
    "torn": tear,
    "overload": overload,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--keys", type=int, default=0, help="API keys that call in turn, each with a quota")
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
