"""Scratch folder of one worker; the folders of killed workers are removed."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = "lock"


@contextmanager
def open_scratch(work_dir: Path, worker: str) -> Generator[Path]:
    """A folder that is removed with its worker. Its lock is held as long as the process lives."""
    work_dir.mkdir(parents=True, exist_ok=True)
    folder = work_dir / worker
    with _lock(work_dir / _LOCK):  # a folder without its lock would look abandoned
        _remove_abandoned(work_dir)
        folder.mkdir()
        lock = _lock(folder / _LOCK).acquire()
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(work_dir: Path) -> None:
    for path in work_dir.glob(f"*/{_LOCK}"):
        try:
            with _lock(path, blocking=False):
                shutil.rmtree(path.parent, ignore_errors=True)
        except (Timeout, FileNotFoundError):
            continue  # its worker lives, or has just removed it


def _lock(path: Path, *, blocking: bool = True) -> FileLock:
    """The kernel's lock, which ends with the process; no other kind."""
    return FileLock(path, blocking=blocking, fallback_to_soft=False)
