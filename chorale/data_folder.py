"""The data directory of a local stack: queue, pictures and logs."""

import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from platformdirs import user_data_path

from chorale.disk_space import require_space, writing
from chorale.errors import AlreadyRunningError, StackError

_LOCK_BYTES = 512  # the same with and without an address, so that a full disk takes one, too
_FIRST_BYTES = 1 << 20  # of a new folder: a queue server without space would be started again and again
_SOCKET_PATH_LIMIT = 100  # macOS ends a Unix socket's path at 104 bytes, Linux at 108


class DataFolder:
    """Paths in one data directory, and the lock that gives it to one stack."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or user_data_path("chorale", appauthor=False)).expanduser().absolute()
        self._lock = self.path / "stack.lock"

    @property
    def queue(self) -> Path:
        return self.path / "queue"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def models_file(self) -> Path:
        """The allow-list of models."""
        return self.path / "models.json"

    @property
    def parts_lock(self) -> Path:
        """Locked, not exclusively, by each part that uses the queue server."""
        return self.path / "parts.lock"

    def log(self, part: str) -> Path:
        return self.path / "logs" / f"{part}.log"

    def socket(self) -> Path:
        """Unix socket of the queue server: beside its data, or in a temporary folder if that path is too long."""
        beside = self.queue / "queue.sock"
        if len(os.fsencode(beside)) <= _SOCKET_PATH_LIMIT:
            return beside
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"chorale-{os.getuid()}-{digest}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise StackError(
                f"{folder} belongs to another user: choose a shorter data directory than {self.path}"
            )
        return folder / "queue.sock"

    def link_secret(self) -> str:
        """Key that signs download links, the same after a restart.

        Raises:
            UnwritableError: there is none yet.
        """
        path = self.path / "link-secret"
        if not path.exists() or not path.read_text().strip():  # a crash may leave it empty
            new = path.with_suffix(".new")  # so that who is killed here leaves no empty secret
            with writing(path, 64):
                new.touch(mode=0o600)
                new.write_text(secrets.token_hex(32))
                new.rename(path)
        return path.read_text()

    def find_running(self) -> str | None:
        """Address of the stack that is using this folder."""
        if not self._lock.exists():
            return None
        with self._lock.open() as file:
            return None if _take(file) else _read_url(file)

    @contextmanager
    def hold(self, url: str) -> Generator[None, None, None]:
        """Lock out other stacks; the lock ends with the process, even if it is killed.

        Raises:
            AlreadyRunningError: another one is using the folder.
            UnwritableError: it cannot be written, or not be made.
        """
        self._prepare()
        with self._open_lock() as file:
            if not _take(file):
                raise AlreadyRunningError(self.path, _read_url(file))
            _overwrite(file, json.dumps({"url": url, "pid": os.getpid()}))
            yield
            _overwrite(file, "")
        self._leave_short_place()

    def _leave_short_place(self) -> None:
        place = self.socket().parent
        if place != self.queue:
            with suppress(OSError):  # in use by a queue server that outlived its owner
                place.rmdir()

    def _prepare(self) -> None:
        for folder in (self.path, self.queue, self.store, self.work, self.log("").parent):
            with writing(folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._lock.exists():
            require_space(self.path, _FIRST_BYTES)

    def _open_lock(self) -> TextIOWrapper:
        with writing(self._lock):
            self._lock.touch()
            return self._lock.open("r+")


def _take(file: TextIOWrapper) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _overwrite(file: TextIOWrapper, text: str) -> None:
    """The text is a convenience for others: where a full disk does not take it, the lock holds all the same."""
    size = max(_LOCK_BYTES, os.fstat(file.fileno()).st_size)
    with suppress(OSError):
        os.pwrite(file.fileno(), text.ljust(size).encode(), 0)


def _read_url(file: TextIOWrapper) -> str | None:
    """None also of what was written in part."""
    file.seek(0)
    try:
        return json.loads(file.read())["url"]
    except ValueError:
        return None
