"""The stack of one machine: started, looked after, stopped, and leaving nothing behind."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from redis import Redis

from api_schemas.generation import GenerationRequest
from api_schemas.webhook import Webhook
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.errors import (
    AlreadyRunningError,
    PortTakenError,
    RefusedStartError,
    StackError,
    UnavailableError,
)
from chorale.local import LocalStack, StackOptions
from chorale.queue_server import answers
from tests.chorale.test_append_only_file import count_keys, cut, serving
from tests.disks import Disk, small_disk
from tests.local_stack import find_all, find_part, toy_stack
from tests.service.webhooks.receiver import SECRET, receive

SHORT = GenerationRequest(prompt="waves", width_px=512, height_px=512, steps=3)
LONG = GenerationRequest(prompt="tide", width_px=512, height_px=512, steps=60, seed=1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """That of the work folder of a data directory."""
    (folder := tmp_path / "work").mkdir()
    disk = Disk(folder)
    yield disk
    disk.close()


def await_true(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def up(folder: Path, *models: str) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "chorale.cli",
        "up",
        "--data",
        str(folder),
        "--port",
        "0",
        "--devices",
        "cpu",
    ]
    return command + [word for model in models for word in ("--model", model)]


@contextmanager
def chorale_up(folder: Path, *models: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`chorale up` as a user starts it, and the address that it prints."""
    with subprocess.Popen(
        up(folder, *models), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            yield process, process.stdout.readline().strip()
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.wait(90)


def test_a_stack_makes_pictures_tells_webhooks_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORALE_WEBHOOK_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("CHORALE_PUBLIC_URL", "https://pictures.example/here/")
    with receive() as receiver, toy_stack(tmp_path) as stack, Client(stack.url) as client:
        drawn = client.set_webhook(Webhook(url=receiver.url + "/key")).secret
        webhook = Webhook.model_validate({"url": receiver.url + "/job", "secret": SECRET})
        job = client.wait(client.create(SHORT.model_copy(update={"webhook": webhook})).id)
        picture = client.download(job.id, tmp_path / "waves.png").read_bytes()
        assert len(picture) > 100
        assert SECRET.encode() not in picture
        for path, secret in (("/key", drawn), ("/job", SECRET)):
            (call,) = receiver.wait(path)
            told = call.verify(secret)
            assert (told["type"], told["data"]["id"]) == ("job.succeeded", job.id)
            assert told["data"]["result"]["sha256"] == hashlib.sha256(picture).hexdigest()
            assert told["data"]["urls"]["result"] == f"https://pictures.example/here/v1/jobs/{job.id}/image"
            assert told["data"]["urls"]["ws"] == f"wss://pictures.example/here/v1/jobs/{job.id}/ws"
        await_true(lambda: [each.status for each in client.deliveries(job.id)] == ["delivered"] * 2)
        with pytest.raises(AlreadyRunningError, match=stack.url):
            LocalStack(DataFolder(tmp_path), StackOptions(models=("toy",))).__enter__()
        assert DataFolder(tmp_path).find_running() == stack.url
        assert find_all(str(tmp_path))
    assert DataFolder(tmp_path).find_running() is None
    assert find_all(str(tmp_path)) == []


def test_a_killed_owner_leaves_no_process_and_its_queue_lives_on(tmp_path: Path) -> None:
    """Nor does anybody else who is connected to the queue server hold it up."""
    with chorale_up(tmp_path, "toy:delay_ms=30") as (process, url):
        with Client(url) as client:
            jobs = [client.create(LONG).id, client.create(SHORT).id]
        stranger = Redis(unix_socket_path=str(DataFolder(tmp_path).socket()))
        stranger.ping()
        process.kill()
    await_true(lambda: find_all(str(tmp_path)) == [])
    stranger.close()
    with toy_stack(tmp_path) as stack, Client(stack.url) as client:
        assert {client.wait(job, timeout_s=90).status for job in jobs} == {"succeeded"}


def test_two_models_are_served_side_by_side_and_leave_each_other_the_cores(tmp_path: Path) -> None:
    with (
        chorale_up(tmp_path, "toy:name=slow,delay_ms=300", "toy:name=quick") as (process, url),
        Client(url) as client,
    ):
        worker = psutil.Process(find_part(process.pid, "worker.main"))
        assert worker.environ()["OMP_WAIT_POLICY"] == "PASSIVE"
        assert {card.name for card in client.models()} == {"slow", "quick"}
        slow = client.create(LONG.model_copy(update={"model": "slow"}))
        quick = client.wait(client.create(SHORT.model_copy(update={"model": "quick"})).id, timeout_s=60)
        assert quick.request.model == "quick"
        assert client.get(slow.id).status in ("queued", "processing")
        client.cancel(slow.id)


def test_ctrl_c_stops_in_order_and_a_second_start_is_refused_meanwhile(tmp_path: Path) -> None:
    with chorale_up(tmp_path, "toy") as (process, url):
        second = subprocess.run(up(tmp_path), capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert url in second.stderr
        assert "Traceback" not in second.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr
        assert "Traceback" not in process.stderr.read()
    assert find_all(str(tmp_path)) == []
    assert "Traceback" not in DataFolder(tmp_path).log("worker-1").read_text()
    assert "Traceback" not in DataFolder(tmp_path).log("service").read_text()


def test_a_start_that_waits_says_for_what_and_so_does_the_server(disk: Disk) -> None:
    """The work folder cannot be written: nothing is tried in vain, and the address comes with the reason."""
    command = up(disk.folder.parent, "toy")
    with disk.unwritable() as code, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        reason = f" is not ready yet: {code}: the work folder cannot be written: "
        # A busy machine is waited for before, and says so.
        said = next(line for line in process.stderr if reason in line)
        with Client(said.split()[1]) as client, pytest.raises(UnavailableError, match=f"paused: {code}: the"):
            client.create(SHORT)
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_a_log_that_there_is_no_space_to_mend_is_waited_for() -> None:
    """As after a loss of power, where the disk has filled up meanwhile."""
    with small_disk() as disk:
        folder = DataFolder(disk.folder)
        with folder.hold("http://before"), serving(folder.queue) as (server, redis):
            folder.link_secret()
            redis.set("job", "kept")
            redis.set("last", "cut")
            server.terminate()
        cut(folder.queue)
        with subprocess.Popen(up(disk.folder, "toy"), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            with disk.filled():
                for pause in ("0.5", "1"):
                    said = process.stderr.readline()
                    assert "incr.aof is damaged at byte" in said
                    assert re.search(rf"; \d+ bytes are free .*needed; tried again in {pause} s$", said)
                assert folder.find_running()
                assert list(folder.queue.glob("damaged-*")) == []
            assert any(": mended, which cost " in line for line in process.stderr)
            await_true(lambda: answers(folder.socket()))
            process.send_signal(signal.SIGINT)
            assert "Traceback" not in process.stderr.read()
        assert count_keys(folder.queue) >= 1


def test_a_worker_that_refuses_its_model_says_why(tmp_path: Path) -> None:
    options = StackOptions(models=(str(tmp_path / "no-such-model"),), devices="cpu")
    with pytest.raises(RefusedStartError, match="no-such-model is refused"):
        LocalStack(DataFolder(tmp_path / "data"), options).__enter__()
    assert find_all(str(tmp_path / "data")) == []


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)):
            LocalStack(DataFolder(tmp_path), StackOptions(port=port)).__enter__()
    assert DataFolder(tmp_path).find_running() is None


def test_a_long_data_directory_gets_a_short_socket(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / ("long" * 30))
    assert len(os.fsencode(folder.socket())) <= 100
    assert folder.socket() == DataFolder(folder.path).socket()
    assert folder.socket() != DataFolder(tmp_path / ("long" * 31)).socket()


def test_the_lock_ends_with_its_owner(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with (
        folder.hold("http://one"),
        pytest.raises(AlreadyRunningError, match="http://one"),
        DataFolder(tmp_path).hold("http://two"),
    ):
        pass
    with folder.hold("http://three"):
        assert json.loads((tmp_path / "stack.lock").read_text())["url"] == "http://three"
    assert folder.find_running() is None
    (tmp_path / "link-secret").touch(mode=0o600)  # as from one that was killed while it made the secret
    assert folder.link_secret() == folder.link_secret() != ""
    assert (tmp_path / "link-secret").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("host", "shown"),
    [("::1", "[::1]"), ("::", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")],
)
def test_the_address_of_any_host_can_be_opened(host: str, shown: str, tmp_path: Path) -> None:
    assert LocalStack(DataFolder(tmp_path), StackOptions(host=host, port=8123)).url == f"http://{shown}:8123"


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    for port in (0, 8123):
        with (
            pytest.raises(StackError, match=r"--host 192\.0\.2\.7.* cannot be bound"),
            LocalStack(DataFolder(tmp_path), StackOptions(host="192.0.2.7", port=port)),
        ):
            pass


def test_a_link_secret_that_a_crash_left_empty_is_drawn_again(tmp_path: Path) -> None:
    (tmp_path / "link-secret").touch()
    drawn = DataFolder(tmp_path).link_secret()
    assert len(drawn) == 64
    assert DataFolder(tmp_path).link_secret() == drawn
