"""Scratch space of one worker; what killed workers left is removed."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"


@contextmanager
def open_scratch(work_dir: Path, worker: str) -> Iterator[Path]:
    """A folder that ends with the worker. A lock shows that it is in use, and ends with the process."""
    work_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(work_dir)
    folder = work_dir / worker
    folder.mkdir()
    try:
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(work_dir: Path) -> None:
    for path in work_dir.glob(f"*/{_LOCK}"):
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path.parent, ignore_errors=True)
