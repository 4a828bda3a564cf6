"""A data directory whose disk is full or read-only: what need not be written is not, and else the error tells the path."""

from pathlib import Path

import pytest

from chorale.data_folder import DataFolder
from chorale.errors import AlreadyRunningError, UnwritableError
from tests.disks import small_disk


def test_a_full_disk_keeps_nobody_from_the_lock() -> None:
    with small_disk() as disk:
        folder = DataFolder(disk.folder)
        with folder.hold("http://one"):
            secret = folder.link_secret()
        with disk.filled(), folder.hold("http://two"):
            assert folder.find_running() == "http://two"
            assert folder.link_secret() == secret
            with pytest.raises(AlreadyRunningError, match="http://two"):
                DataFolder(disk.folder).hold("http://three").__enter__()


def test_a_lock_without_an_address_holds_too() -> None:
    """As a full disk leaves it where an older version had emptied the file, or cuts it."""
    with small_disk() as disk:
        folder, lock = DataFolder(disk.folder), disk.folder / "stack.lock"
        with folder.hold("http://before"):
            pass
        lock.write_text("")
        with disk.filled(), folder.hold("http://one"), pytest.raises(AlreadyRunningError):
            DataFolder(disk.folder).hold("http://two").__enter__()
        with folder.hold("http://three"):
            lock.write_text('{"url": "http://thr')
            assert folder.find_running() is None
            with pytest.raises(AlreadyRunningError, match=f"{disk.folder} already runs and is starting"):
                DataFolder(disk.folder).hold("http://four").__enter__()


def test_a_new_data_directory_that_cannot_be_made_is_named_with_what_is_free() -> None:
    with small_disk() as disk:
        folder = DataFolder(disk.folder / "new")
        told = rf"{folder.path}\S* cannot be written: \S.*; \d+ bytes are free"
        for left_bytes in (0, 32_768):  # not enough for the queue server's first log either
            with (
                disk.filled(left_bytes),
                pytest.raises(UnwritableError, match=told),
                folder.hold("http://one"),
            ):
                folder.link_secret()
        with folder.hold("http://one"):
            assert len(folder.link_secret()) == 64


def test_a_data_directory_that_is_read_only_is_named() -> None:
    with small_disk() as disk:
        folder = DataFolder(disk.folder)
        with disk.unwritable(), pytest.raises(UnwritableError, match=f"{disk.folder}/"), folder.hold("any"):
            pass


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.touch()
    for folder, why in (
        (path, "it is no folder"),
        (path / "x", "no folder can be made there; --data names.*"),
    ):
        with pytest.raises(UnwritableError, match=f"^{folder} cannot be written: {why}$"):
            DataFolder(folder).hold("any").__enter__()


def test_a_secret_that_has_no_space_leaves_nothing_in_its_place() -> None:
    with small_disk() as disk:
        folder = DataFolder(disk.folder)
        with disk.filled(), pytest.raises(UnwritableError, match="link-secret cannot be written"):
            folder.link_secret()
        assert len(folder.link_secret()) == 64
