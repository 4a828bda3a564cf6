"""`python -m tests.chaos.storm [--kills 200] [--jobs 100]`: kill everything under `chorale up` but itself.

API, workers, engines, queue server, the delivery of webhooks and guards get SIGKILL at random while jobs arrive. At the end
`chorale up` must run as it did, and every job must have succeeded once, with the bytes of an undisturbed one,
and its webhook must have been told so, by one id.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from api_schemas.answers import JobView
from api_schemas.generation import GenerationRequest
from api_schemas.webhook import Webhook
from chorale.client import Client
from chorale.errors import ChoraleError
from tests.local_stack import find_all
from tests.service.webhooks.receiver import Receiver, receive
from tests.worker.processes import command_of, find_children, is_running

MODEL = "toy:delay_ms=30"
KINDS = (
    "service.main",
    "worker.main",
    "service.webhooks.main",
    "spawn_main",
    "valkey-server",
    "chorale.queue_server",
    "chorale.guard",
)
PICTURES = 5  # different ones; jobs repeat them
PATIENT = "1000"  # so many kills before a first checkpoint are bad luck, not poison


class Storm:
    """Kills what runs under one process, and remembers how long the service was away."""

    def __init__(self, owner: int, url: str, chance: random.Random) -> None:
        self.kills: Counter[str] = Counter()
        self.longest_away_s = 0.0
        self._owner, self._url, self._chance = owner, url, chance
        self._ended = Event()
        self._observer = Thread(target=self._observe, daemon=True)

    def __enter__(self) -> "Storm":
        self._observer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._observer.join()

    def kill_one(self, kind: str | None = None) -> None:
        """Kill one process of a kind; at once where one runs, or as soon as one does."""
        kind = kind or self._chance.choice(KINDS)
        while not (victims := [pid for pid in find_descendants(self._owner) if _kind_of(pid) == kind]):
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.kill(self._chance.choice(victims), signal.SIGKILL)
            self.kills[kind] += 1

    def _observe(self) -> None:
        ready_at = time.monotonic()
        with Client(self._url) as client:
            while not self._ended.wait(0.2):
                with suppress(ChoraleError):
                    ready_at = time.monotonic() if client.readiness().ready else ready_at
                self.longest_away_s = max(self.longest_away_s, time.monotonic() - ready_at)


@contextmanager
def chorale_up(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`chorale up` as a user starts it, and its address."""
    command = [sys.executable, "-m", "chorale.cli", "up", "--data", str(folder), "--port", "0"]
    patient = {
        "CHORALE_MAX_ATTEMPTS": PATIENT,
        "CHORALE_JOB_RETRIES": PATIENT,
        "CHORALE_WEBHOOK_NETWORKS": "127.0.0.0/8",
    }
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--devices", "cpu", "--model", MODEL, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | patient,
        )
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url, (folder / "up.log").read_text()
        yield process, url
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(120)


def find_descendants(pid: int) -> list[int]:
    """Process ids of all that it started, and of what those started."""
    children = find_children(pid)
    return children + [each for child in children for each in find_descendants(child)]


def create(client: Client, request: GenerationRequest) -> str:
    """Post a job until it is acknowledged, once."""
    key = uuid.uuid4().hex
    while True:
        with suppress(ChoraleError):
            return client.create(request, idempotency_key=key).id
        time.sleep(0.2)


def await_end(client: Client, job_id: str) -> JobView:
    """Wait through any number of lost connections."""
    while True:
        with suppress(ChoraleError):
            return client.wait(job_id, timeout_s=600)
        time.sleep(0.2)


def require_told(client: Client, receiver: Receiver, jobs: list[str]) -> None:
    """Each job's end was told once or more, always by the same id."""
    for job in jobs:
        while True:
            with suppress(ChoraleError):
                if [each.status for each in client.deliveries(job)] == ["delivered"]:
                    break
            time.sleep(0.2)
    ids: dict[object, set[str]] = {}
    for call in receiver.calls:
        ids.setdefault(call.read()["data"]["id"], set()).add(call.id)
    assert [len(ids[job]) for job in jobs] == [1] * len(jobs)


def digest(client: Client, job_id: str, folder: Path) -> str:
    """Of the job's picture."""
    path = client.download(job_id, folder / "picture.png")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def requests(steps: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(prompt="storm", width_px=512, height_px=512, steps=steps, seed=seed)
        for seed in range(PICTURES)
    ]


def _kind_of(pid: int) -> str | None:
    command = command_of(pid)
    # A guard's command line ends with that of what it guards.
    order = ("chorale.guard", "chorale.queue_server", "spawn_main", "valkey-server", *KINDS)
    return next((kind for kind in order if kind in command), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pause-s", type=float, default=4.0, help="mean time between two kills")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    given = parser.parse_args()
    print(given, flush=True)
    with tempfile.TemporaryDirectory(prefix="storm-") as name:
        folder = Path(name)
        with (
            receive() as receiver,
            chorale_up(folder, "--workers", str(given.workers)) as (up, url),
            Client(url) as client,
        ):
            client.set_webhook(Webhook(url=receiver.url))
            wanted = [
                digest(client, await_end(client, create(client, each)).id, folder)
                for each in requests(given.steps)
            ]
            jobs, storm = _let_loose(given, up.pid, url, client)
            ended = [await_end(client, job) for job in jobs]
            _report(given, storm, ended)
            assert up.poll() is None, "`chorale up` has ended"
            assert all(job.status == "succeeded" for job in ended), Counter(job.status for job in ended)
            for number, job in enumerate(jobs):
                types = [event.type for event in client.events(job)]
                assert types.count("job.succeeded") == 1, types
                assert digest(client, job, folder) == wanted[number % PICTURES], (
                    f"job {number} has other bytes"
                )
            require_told(client, receiver, jobs)
        left = [command_of(pid) for pid in find_all(name) if is_running(pid)]
        assert left == [], left
    print(
        "chorale up stayed up; nothing was lost; one result each; bytes equal; each webhook told; no process left"
    )


def _let_loose(given: argparse.Namespace, up: int, url: str, client: Client) -> tuple[list[str], Storm]:
    """Jobs arrive evenly over the storm."""
    chance, jobs, began = random.Random(given.seed), list[str](), time.monotonic()
    wanted = requests(given.steps)
    with Storm(up, url, chance) as storm:
        for number in range(given.kills):
            while len(jobs) * given.kills <= number * given.jobs and len(jobs) < given.jobs:
                jobs.append(create(client, wanted[len(jobs) % PICTURES]))
            storm.kill_one()
            time.sleep(chance.uniform(0.2, 2 * given.pause_s - 0.2))
            if number % 20 == 19:
                print(f"{number + 1} kills after {time.monotonic() - began:.0f} s", flush=True)
        while len(jobs) < given.jobs:
            jobs.append(create(client, wanted[len(jobs) % PICTURES]))
        for job in jobs:
            await_end(client, job)
        print(f"all ended after {time.monotonic() - began:.0f} s", flush=True)
    return jobs, storm


def _report(given: argparse.Namespace, storm: Storm, ended: list[JobView]) -> None:
    print(f"kills {dict(storm.kills)}, {storm.kills.total()} in all")
    print(
        f"{len(ended)} jobs: {Counter(job.status for job in ended)}, {sum(job.attempt for job in ended)} attempts"
    )
    print(f"longest time without readiness {storm.longest_away_s:.1f} s")


if __name__ == "__main__":
    main()
