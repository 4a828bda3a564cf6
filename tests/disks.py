"""Small disks that tests fill or make read-only: a tmpfs where this machine lets us mount one.

Elsewhere they are folders that lose their write permission, in place of being full too.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SIZE = 24 << 20


class Disk:
    """A folder with a disk of its own, of 24 MiB where that can be had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_mounted = _mount(folder, f"size={_SIZE}")

    @contextmanager
    def filled(self, left_bytes: int = 0) -> Iterator[str]:
        """With so much free space; gives the code of the error that this causes."""
        if not self.is_mounted:
            with self.unwritable() as code:
                yield code
            return
        filler = self.folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        os.truncate(filler, filler.stat().st_size - left_bytes)
        try:
            yield "disk_full"
        finally:
            filler.unlink()

    @contextmanager
    def unwritable(self) -> Iterator[str]:
        """Read-only; gives the code of the error that this causes."""
        if self.is_mounted and _mount(self.folder, "ro"):
            try:
                yield "disk_unwritable"
            finally:
                subprocess.run(["umount", self.folder], check=True)
            return
        folders = [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]
        _set_mode(folders, 0o500)
        try:
            if os.access(self.folder, os.W_OK):
                raise RuntimeError("this needs leave to mount a tmpfs, or a user other than root")
            yield "disk_unwritable"
        finally:
            _set_mode(folders, 0o700)

    def close(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "-l", self.folder], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def small_disk() -> Iterator[Disk]:
    """One that is gone at the end, in a folder whose path is short enough for sockets."""
    disk = Disk(Path(tempfile.mkdtemp(prefix="ch-")))
    try:
        yield disk
    finally:
        disk.close()


def _set_mode(folders: list[Path], mode: int) -> None:
    for folder in folders:
        with suppress(FileNotFoundError):
            folder.chmod(mode)


def _mount(folder: Path, options: str) -> bool:
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
