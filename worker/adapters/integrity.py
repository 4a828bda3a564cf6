"""A loader is shown a folder of its own, which holds exactly the files that were checked.

What is beside them, be it pickles, Python, other variants or a link that leads elsewhere, the loader cannot find. An
entry of the allow-list is safe from whoever can write to its folder but is neither root nor the worker's own user:
a file that such a person could still change, or exchange anywhere on its path, is copied first, and the copy is
checked and loaded; all others are linked to, since weights stay mapped from their files for as long as they are used.
Not covered: root, the worker's user, somebody who opened a file before it became theirs, and folders that are not on
the list, whose SHA256SUMS finds damage but no malice.
"""

import grp
import hashlib
import logging
import os
import pwd
import re
import shutil
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from api_schemas.allow_list import AllowedModel
from api_schemas.model_files import Files, Folder, FolderError, choose_model_files
from worker.adapters.errors import DamagedModelError, ModelError, ModelFolderError

_DIGESTS = "SHA256SUMS"
_SUM = re.compile(r"(?P<digest>[0-9A-Fa-f]{64}) [ *]?(?P<name>.+)")
_GIB = 1 << 30
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


class Snapshot:
    """A folder of the loader's own; it is gone when nobody holds this any more.

    Args:
        scratch: where it is made; the system's folder for temporary files if None.
        name: of what it is a snapshot of, for messages.
    """

    def __init__(self, scratch: Path | None, name: str) -> None:
        self._holder = TemporaryDirectory(prefix="snapshot-", dir=scratch, ignore_cleanup_errors=True)
        self.path = Path(self._holder.name).resolve() / (name or "folder")
        self.path.mkdir()

    def place(self, name: str) -> Path:
        """Path for a file, its folder made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep(self, files: Files) -> None:
        """Only these, under the names that a loader asks for."""
        kept = {self.path / name for name in files.values()}
        for path in [path for path in self.path.rglob("*") if path.is_file() and path not in kept]:
            path.unlink()
        for shown, name in files.items():
            (self.path / name).rename(self.path / shown)

    def close(self) -> None:
        self._holder.cleanup()


@contextmanager
def snapshot_folder(folder: Path, scratch: Path | None) -> Generator[Path]:
    """What is read of a folder that is not on the allow-list.

    Raises:
        ModelFolderError: missing, incomplete, or without weights that can be loaded.
        DamagedModelError: a file is missing or does not have its digest in SHA256SUMS.
    """
    with _naming(folder, str(folder)):
        files = choose_model_files(Folder.on_disk(folder))
    if (folder / _DIGESTS).is_file():
        _check_sums(folder)
    snapshot = Snapshot(scratch, folder.resolve().name)
    for shown, name in files.items():
        snapshot.place(shown).symlink_to((folder / name).resolve(strict=True))
    yield from _lend(snapshot, str(folder))


@contextmanager
def snapshot_model(name: str, entry: AllowedModel, scratch: Path | None) -> Generator[Path]:
    """What is read of a model on the allow-list, its digests right. Errors as of `snapshot_listed`."""
    yield from _lend(snapshot_listed(name, entry, scratch), str(entry.path))


def snapshot_listed(name: str, entry: AllowedModel, scratch: Path | None) -> Snapshot:
    """What is read of an entry of the allow-list. What is said may be read by clients, so it shows no folders.

    Raises:
        ModelFolderError: it cannot be loaded.
        DamagedModelError: a file is missing, changed, or was not there when the entry was made.
    """
    snapshot = _begin_snapshot(name, entry, scratch)
    _require_memory(name, entry, snapshot.path)
    for file, expected in entry.files.items():
        _require_digest(
            _settle(name, entry.root / file, snapshot.place(file), file), expected, f"{name}: {file}"
        )
    with _naming(entry.root, name):
        _refuse_added(name, entry)
    with _naming(snapshot.path, name):
        snapshot.keep(entry.choose_files(Folder.on_disk(snapshot.path)))
    return snapshot


def _begin_snapshot(name: str, entry: AllowedModel, scratch: Path | None) -> Snapshot:
    """Where nobody else can exchange it: if not in the folder for scratch files, then in the system's."""
    for place in (scratch, None):
        snapshot = Snapshot(place, entry.root.name)
        if is_ours(snapshot.path):
            return snapshot
        snapshot.close()
    raise ModelFolderError(
        f"{name}: others can exchange files in {scratch or 'TMPDIR'}; give the worker a folder for scratch files that"
        " only its user can write to (CHORALE_WORK_DIR)"
    )


def _lend(snapshot: Snapshot, shown: str) -> Iterator[Path]:
    try:
        with _naming(snapshot.path, shown):
            yield snapshot.path
    finally:
        snapshot.close()


@contextmanager
def _naming(path: Path, shown: str) -> Generator[None]:
    """Errors name what the operator knows."""
    try:
        yield
    except FolderError as error:
        raise ModelFolderError(str(error).replace(str(path), shown)) from error
    except ModelError as error:
        raise type(error)(str(error).replace(str(path), shown)) from error


def _refuse_added(name: str, entry: AllowedModel) -> None:
    """A file that would now be read, such as another variant, changes the model as much as a changed one."""
    added = sorted(set(entry.choose_files(Folder.on_disk(entry.root)).values()) - set(entry.files))
    if added:
        raise DamagedModelError(
            f"{name} holds files that are read and not on the allow-list: {', '.join(added)}; if they are meant, add"
            " it again"
        )


def _require_memory(name: str, entry: AllowedModel, scratch: Path) -> None:
    paths = [entry.root / file for file in entry.files]
    needed = sum(path.stat().st_size for path in paths if path.is_file() and not is_ours(path.resolve()))
    if not needed:
        return
    _log.warning("%s: others can change its files, so %.1f GiB are copied before use", name, needed / _GIB)
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise ModelFolderError(
            f"{name}: others than the worker's user can change its files, so that they have to be copied before use,"
            f" {needed / _GIB:.1f} GiB, and the work folder has {free / _GIB:.1f} GiB left; make them, and the"
            " folders above them, writable by the worker's user or root alone"
        )


def _settle(name: str, path: Path, target: Path, shown: str) -> str | None:
    """Link to a file, or copy it if others can change it; its digest as it will be loaded, None if it is missing."""
    if not path.is_file():
        return None
    try:
        real = path.resolve(strict=True)
        if is_ours(real):
            target.symlink_to(real)
            return _digest(target)
        return _copy(path, target)
    except OSError as error:
        raise ModelFolderError(f"{name}: {shown} cannot be read: {error.strerror}") from error


def _copy(path: Path, target: Path) -> str:
    """To a file that nobody else can change; the digest of what was written."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as source, target.open("xb") as copy:
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):  # exchanged for a pipe just now
            raise OSError(0, "it is no file")
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sums(folder: Path) -> None:
    """Lines as sha256sum writes and reads them; PowerShell's digests are in capitals."""
    for line in (folder / _DIGESTS).read_bytes().decode(errors="replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _SUM.fullmatch(line)
        if match is None:
            raise ModelFolderError(f"{folder / _DIGESTS}: {line!r} is not a digest and the name of a file")
        path = folder / match["name"]
        _require_digest(_digest(path) if path.is_file() else None, match["digest"].lower(), str(path))


def _require_digest(actual: str | None, expected: str, shown: str) -> None:
    if actual is None:
        raise DamagedModelError(f"{shown} is missing; expected a file with SHA-256 {expected}")
    if actual != expected:
        raise DamagedModelError(f"{shown} has SHA-256 {actual}, expected {expected}: damaged or changed")


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that is read of a model's folder, by its name below it."""
    names = set(choose_model_files(Folder.on_disk(folder)).values())
    return {name: _digest(folder / name) for name in names}


def is_ours(path: Path) -> bool:
    """Whether root and this user alone can change the file, or what lies at its path.

    That holds for the path of every folder above it too, up from the root, so that none can be exchanged. Access
    control lists count: they show as rights of the group. Somebody who opened the file while it was still his to
    write is not found out.

    Args:
        path: resolved, without links.
    """
    return all(_is_ours(each.lstat()) for each in (path, *path.parents))


def _is_ours(state: os.stat_result) -> bool:
    if stat.S_ISLNK(state.st_mode) or state.st_uid not in (0, os.geteuid()):
        return False
    if stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX:
        return True  # as /tmp: others may add to it, and not replace what is ours
    if state.st_mode & stat.S_IWOTH:
        return False
    return not state.st_mode & stat.S_IWGRP or _is_private(state)


def _is_private(state: os.stat_result) -> bool:
    """Whether the file's group is its owner's own, as many systems make one for each user."""
    try:
        group, owner = grp.getgrgid(state.st_gid), pwd.getpwuid(state.st_uid)
    except KeyError:
        return False
    return group.gr_name == owner.pw_name and set(group.gr_mem) <= {owner.pw_name}
