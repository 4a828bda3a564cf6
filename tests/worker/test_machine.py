"""What a worker finds out about its disks before it takes a job."""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from api_schemas.disk import DiskNeed
from tests.disks import Disk, small_disk
from worker.errors import DiskFullError
from worker.machine import Machine
from worker.settings import WorkerSettings
from worker.storage import Storage

MIB = 1 << 20


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    with small_disk() as disk:
        yield disk


def make_machine(work_dir: Path, store: Path, reserve_bytes: int = 0) -> Machine:
    storage = Storage.open(WorkerSettings(store_url=store.as_uri()))
    return Machine(work_dir, storage, reserve_bytes)


def is_fit(machine: Machine, need: DiskNeed | None = None) -> bool:
    return machine.is_fit(need, Event(), lambda: None)


def test_a_fault_lasts_as_long_as_its_cause(disk: Disk, tmp_path: Path) -> None:
    work, store = make_machine(disk.folder, tmp_path), make_machine(tmp_path, disk.folder)
    assert is_fit(work)
    for cause, store_code in ((disk.filled, "disk_full"), (disk.unwritable, "storage_unavailable")):
        with cause() as code:
            assert not is_fit(work)
            assert not is_fit(store)
            assert work.fault is not None
            assert store.fault is not None
            assert (work.fault.code, store.fault.code) in ((code, store_code), (code, "storage_unavailable"))
            assert str(disk.folder) not in f"{work.fault} {store.fault}"
        assert is_fit(work)
        assert is_fit(store)


def test_a_job_has_space_for_itself_and_the_reserve(tmp_path: Path) -> None:
    """Work folder and store lie on one disk: both needs count, and what the job has written itself does not."""
    machine = make_machine(tmp_path / "work", tmp_path / "store", reserve_bytes=MIB)
    assert machine.find_fault(DiskNeed(MIB, MIB)) is None
    disk = os.statvfs(tmp_path)
    too_much_now = DiskNeed(disk.f_bavail * disk.f_frsize + (1 << 30), MIB)
    fault = machine.find_fault(too_much_now)
    assert isinstance(fault, DiskFullError)
    assert str(fault).startswith(
        f"the next job may need {(too_much_now.work_bytes + MIB) / 2**30:.1f} GiB, and "
    )
    assert "of which 1.0 MiB are kept for the queue server" in str(fault)
    assert machine.find_misfit(too_much_now) is None


def test_a_job_that_no_disk_here_can_hold_is_not_waited_for(tmp_path: Path) -> None:
    machine, too_much = make_machine(tmp_path / "work", tmp_path / "store"), DiskNeed(1 << 60, 0)
    assert is_fit(machine, too_much)
    assert (machine.find_misfit(too_much) or "").startswith("the job may need 1073741824.0 GiB, and ")


def test_a_disk_that_takes_no_more_files_is_full_whatever_its_space(tmp_path: Path) -> None:
    """Some disks have no limit of files, and say 0."""
    machine = make_machine(tmp_path / "work", tmp_path / "store")
    assert is_fit(machine, DiskNeed(0, 0, files=2))
    disk = os.statvfs(tmp_path)
    fault = machine.find_fault(DiskNeed(0, 0, files=disk.f_favail // 2 + 1000))  # in folder and store
    assert (fault is not None) == (disk.f_favail + 2000 <= disk.f_files)
    assert fault is None or "inodes are free on the disk of the work folder and the object store" in str(
        fault
    )
    assert machine.find_fault(DiskNeed(0, 0, files=disk.f_files)) is None  # nothing to wait for


def test_what_a_job_has_written_itself_is_space_for_its_next_attempt(disk: Disk, tmp_path: Path) -> None:
    machine, own = make_machine(disk.folder, tmp_path), disk.folder / "job"
    own.mkdir()
    (own / "image.tif").write_bytes(bytes(8 * MIB))
    there = os.statvfs(disk.folder)
    need = DiskNeed(there.f_bavail * there.f_frsize + 4 * MIB, 0)
    assert isinstance(machine.find_fault(need), DiskFullError)
    assert machine.find_fault(need, own) is None


def test_a_folder_that_was_cleaned_away_is_made_again(tmp_path: Path) -> None:
    machine = make_machine(tmp_path / "work", tmp_path / "store")
    assert is_fit(machine)
    (tmp_path / "work").rmdir()
    assert is_fit(machine)
    assert (tmp_path / "work").is_dir()
