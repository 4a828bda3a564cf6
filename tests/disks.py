"""Small disks that tests fill or make read-only: a tmpfs where this machine lets us mount one.

Elsewhere they are folders that lose their write permission, which does the same to all but root.
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
        self._is_mounted = _mount(folder, f"size={_SIZE}")

    @contextmanager
    def filled(self, left_bytes: int = 0) -> Iterator[str]:
        """With so much free space; gives the code of the error that this causes."""
        if not self._is_mounted:
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
        """Read-only, also to root; gives the code of the error that this causes."""
        is_mounted = self._is_mounted and _mount(self.folder, "ro")
        mode = self.folder.stat().st_mode
        if not is_mounted:
            self.folder.chmod(0o500)
        try:
            yield "disk_unwritable"
        finally:
            if is_mounted:
                subprocess.run(["umount", self.folder], check=True)
            else:
                self.folder.chmod(mode)

    def close(self) -> None:
        if self._is_mounted:
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


def _mount(folder: Path, options: str) -> bool:
    if os.getuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
