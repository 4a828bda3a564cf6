"""Seconds by phase and peak memory by process of whole pictures, from POST to the stored file.

    .venv/bin/python benchmarks/picture.py --sizes 512 1024 2048 4096
    .venv/bin/python benchmarks/picture.py --sizes 8192 --steps 2

A fresh stack for each size, so that each peak (VmHWM, Linux) belongs to one picture; `overhead` is
what the service adds to the engine's own time: queueing, events, previews, storing.
"""

import argparse
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil

from api_schemas.events import DurableEvent, JobSucceeded, PhaseStarted
from api_schemas.generation import GenerationRequest
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.local import LocalStack, StackOptions

ROLES = {"service.main": "api", "worker.main": "worker", "spawn_main": "engine", "valkey": "valkey"}


def main() -> None:
    options = parse()
    print(
        "size  tiles/step  steps  wait  denoise  decode  store  total  engine  overhead  peak MiB by process"
    )
    for size_px in options.sizes:
        with (
            tempfile.TemporaryDirectory(prefix="ch-") as folder,
            LocalStack(
                DataFolder(Path(folder)), StackOptions(models=(options.model,) if options.model else ())
            ) as stack,
        ):
            stack.await_ready()
            print(measure(stack.url, ask(options, size_px)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--model", help="model folder; the bundled one if left out")
    parser.add_argument("--prompt", default="glowing orange lava")
    return parser.parse_args()


def ask(options: argparse.Namespace, size_px: int) -> GenerationRequest:
    return GenerationRequest(
        prompt=options.prompt,
        width_px=size_px,
        height_px=size_px,
        steps=options.steps,
        seed=7,
        seamless="both",
    )


def measure(url: str, request: GenerationRequest) -> str:
    """One picture as one row of the table."""
    with Client(url) as client:
        began = time.monotonic()
        job = client.create(request)
        events = [event for event in client.events(job.id) if event.type != "snapshot"]
        total_s = time.monotonic() - began
    done = events[-1]
    if not isinstance(done, JobSucceeded):
        raise SystemExit(f"{request.width_px} px ended with {done.type}: {done.data}")
    engine_s = done.data.result.engine_s
    stages = stage_seconds(events)
    tiles = [event.data for event in events if event.type == "step.completed"]
    cells = [
        f"{request.width_px:5}", f"{tiles[0].tiles:11}", f"{tiles[0].steps:6}",
        *(f"{stages[name]:{width}.1f}" for name, width in (("wait", 5), ("denoise", 8), ("decode", 7), ("store", 6))),
        f"{total_s:6.1f}", f"{engine_s:7.1f}", f"{total_s - engine_s:9.2f}",
        "  " + "  ".join(f"{role} {size}" for role, size in peak_mib().items()),
    ]  # fmt: skip
    return " ".join(cells)


def stage_seconds(events: list[DurableEvent]) -> dict[str, float]:
    """Stage by stage; `wait` ends when the first stage starts."""
    marks = [("wait", events[0].ts)]
    marks += [(event.data.phase, event.ts) for event in events if isinstance(event, PhaseStarted)]
    marks.append(("", events[-1].ts))
    return {name: later - earlier for (name, earlier), (_, later) in pairwise(marks)}


def peak_mib() -> dict[str, int]:
    """Largest resident memory that each process of the stack ever had."""
    peaks: dict[str, int] = {}
    for process in psutil.Process().children(recursive=True):
        line = " ".join(process.cmdline())
        role = next((role for word, role in ROLES.items() if word in line), None)
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_kib = int(status.split("VmHWM:")[1].split()[0])
        if role:
            peaks[role] = max(peaks.get(role, 0), peak_kib // 1024)
    return peaks


if __name__ == "__main__":
    main()
