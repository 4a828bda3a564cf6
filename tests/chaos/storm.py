"""`python -m tests.chaos.storm [--kills 200] [--jobs 100]`: kill everything under `chorale up` but itself.

API, workers, engines, queue server, the delivery of webhooks and guards get SIGKILL at random while jobs of two API
keys arrive: from words, with regions, and children of finished ones. At the end `chorale up` must run as it did, and
every job must have succeeded once, with the bytes of an undisturbed one; its key's webhook must have been told so, by
one id; and each key must see its own jobs, have used what they cost, and see no other's.
"""

import argparse
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
from itertools import cycle
from pathlib import Path
from threading import Event, Thread

from api_schemas.answers import JobView
from api_schemas.generation import GenerationRequest
from chorale.client import Client
from chorale.errors import ChoraleError
from tests.chaos.outcome import Undisturbed, require_counted, require_made, require_private, require_told
from tests.chaos.tenants import Tenant, await_end, open_tenants, persist
from tests.local_stack import find_all
from tests.service.webhooks.receiver import receive
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
    return persist(lambda: client.create(request, idempotency_key=key)).id


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
            open_tenants(folder, url, receiver.url, given.steps, "calm", "ann", "bob") as (calm, *tenants),
        ):
            undisturbed = Undisturbed(calm, folder)
            storm = _let_loose(given, up.pid, url, tenants)
            ended = {
                order.job_id: await_end(tenant.client, order.job_id)
                for tenant in tenants
                for order in tenant.orders
            }
            _report(storm, tenants, list(ended.values()))
            assert up.poll() is None, "`chorale up` has ended"
            for tenant in tenants:
                own = tenant.list_own()
                require_made(tenant, ended, undisturbed, folder)
                require_told(tenant.client, receiver, own, tenant.hook_path)
                require_private(tenant, {*ended, *calm.list_own()} - {*own})
                require_counted(tenant)
        left = [command_of(pid) for pid in find_all(name) if is_running(pid)]
        assert left == [], left
    print(
        "chorale up stayed up; nothing was lost; one result each; bytes equal; each webhook told; no key sees another's;"
        " all is counted; no process left"
    )


def _let_loose(given: argparse.Namespace, up: int, url: str, tenants: list[Tenant]) -> Storm:
    """Jobs arrive evenly over the storm, of each key in turn."""
    chance, began, turns = random.Random(given.seed), time.monotonic(), cycle(tenants)

    def ask_until(count: float) -> None:
        while sum(len(tenant.orders) for tenant in tenants) < count:
            next(turns).ask()

    with Storm(up, url, chance) as storm:
        for number in range(given.kills):
            ask_until((number + 1) * given.jobs / given.kills)
            storm.kill_one()
            time.sleep(chance.uniform(0.2, 2 * given.pause_s - 0.2))
            if number % 20 == 19:
                print(f"{number + 1} kills after {time.monotonic() - began:.0f} s", flush=True)
        for tenant in tenants:
            for order in tenant.orders:
                await_end(tenant.client, order.job_id)
        print(f"all ended after {time.monotonic() - began:.0f} s", flush=True)
    return storm


def _report(storm: Storm, tenants: list[Tenant], ended: list[JobView]) -> None:
    print(f"kills {dict(storm.kills)}, {storm.kills.total()} in all")
    print(
        f"{len(ended)} jobs: {Counter(job.status for job in ended)}, {sum(job.attempt for job in ended)} attempts"
    )
    print(f"kinds {dict(Counter(order.kind for tenant in tenants for order in tenant.orders))}")
    print(f"longest time without readiness {storm.longest_away_s:.1f} s")


if __name__ == "__main__":
    main()
