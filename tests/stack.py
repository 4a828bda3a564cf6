"""The API and a worker as an operator starts them: two processes, one Valkey, one store."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chorale.client import Client
from chorale.errors import ChoraleError
from tests.conftest import free_ports


class Stack:
    """A running server; `worker` and `api` may be killed and started again."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._environment = os.environ | {"CHORALE_PORT": str(port), "OMP_NUM_THREADS": "1"} | environment
        self.api = self.start("service.main")
        self.worker = self.start("worker.main")

    def start(self, module: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{module}.log").open("ab")
        return subprocess.Popen([sys.executable, "-m", module], env=self._environment, stderr=log, stdout=log)

    def await_ready(self, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        with Client(self.url) as client:
            while not _is_ready(client):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not ready after {timeout_s} s:\n{self.logs()}")
                time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in (self.worker, self.api):
            process.kill()
            process.wait()


def _is_ready(client: Client) -> bool:
    try:
        return client.readiness().ready
    except ChoraleError:
        return False


@contextmanager
def running_stack(folder: Path, valkey: str, model: str, **environment: str) -> Iterator[Stack]:
    """A ready stack with its store in `folder`, unless the environment names another."""
    settings = {
        "CHORALE_REDIS_URL": valkey,
        "CHORALE_STORE_URL": (folder / "store").as_uri(),
        "CHORALE_WORK_DIR": str(folder / "work"),
        "CHORALE_MODEL": model,
        "CHORALE_DEVICES": "cpu",
        "CHORALE_LEASE_S": "3",
    }
    stack = Stack(folder, settings | environment)
    try:
        stack.await_ready()
        yield stack
    finally:
        stack.close()
