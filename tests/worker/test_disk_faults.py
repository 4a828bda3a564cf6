"""Whoever writes a file, and in whatever words it fails: the disk is blamed, and no path is told."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
import pyvips
import torch
from obstore.store import LocalStore
from safetensors.torch import save_file

from tests.disks import Disk, small_disk
from worker.disk_faults import find_disk_fault, hide_paths
from worker.process.failures import describe
from worker.process.files import ImageFile


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    with small_disk() as disk:
        yield disk


def write_rows(folder: Path) -> None:
    with ImageFile(folder / "rows.tif", 64, 64) as image:
        image.write(0, np.zeros((64, 64, 3), np.uint8))


def write_picture(folder: Path) -> None:
    pyvips.Image.gaussnoise(512, 512).cast("uchar").write_to_file(str(folder / "picture.png"))


WRITERS = {
    "rows": write_rows,
    "picture": write_picture,
    "state": lambda folder: save_file({"latent": torch.zeros(4, 64, 64)}, folder / "state.safetensors"),
    "store": lambda folder: obstore.put(LocalStore(folder), "a/key", bytes(1 << 16)),
    "plain": lambda folder: (folder / "plain").write_bytes(bytes(1 << 16)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_every_writer_is_understood(disk: Disk, write: Callable[[Path], object]) -> None:
    for cause in (disk.filled, disk.unwritable):
        with cause() as code:
            with pytest.raises(Exception) as raised:  # noqa: PT011, each has its own kind
                write(disk.folder)
            fault = find_disk_fault(raised.value, "the work folder")
            assert fault is not None, raised.value
            assert fault.code == code
            failed = describe(raised.value)
            assert (failed.code, failed.retryable) == (code, True)
            assert str(disk.folder) not in failed.message


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "none", "/a/b"), KeyError(28)]
)
def test_other_errors_are_not_the_disks(error: Exception) -> None:
    assert find_disk_fault(error, "the work folder") is None


def test_no_path_gets_into_the_message_of_a_job() -> None:
    failed = describe(FileNotFoundError(errno.ENOENT, "No such file", "/srv/scratch/w-1/tmp2/image.tif"))
    assert failed.message == "FileNotFoundError: [Errno 2] No such file: 'image.tif'"
    assert hide_paths("see https://example.org/a/b, 3/4 of it") == "see https://example.org/a/b, 3/4 of it"
