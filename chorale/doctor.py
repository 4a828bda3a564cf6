"""What is wrong with a data directory, and what of it can be mended."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chorale.allow_list import AllowListFile
from chorale.append_only_file import find_damage
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.errors import AllowListError, AlreadyRunningError, ChoraleError, StackError, UnwritableError


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one part.

    Args:
        is_well: whether a stack can work with it, mended or as it was.
    """

    part: str
    text: str
    is_well: bool


def examine(folder: DataFolder, *, repair: bool) -> Iterator[Finding]:
    """
    Raises:
        AlreadyRunningError: a stack uses the folder, and nothing may be mended under it.
    """
    if not folder.path.is_dir():
        yield Finding("data directory", f"{folder.path} does not exist: `chorale up` makes it", True)
        return
    yield from _examine_access(folder)
    try:
        with folder.hold(""):
            yield from _examine_queue(folder.queue, repair=repair)
    except UnwritableError as error:
        yield Finding("queue", f"not looked at, since {error}", False)
    except AlreadyRunningError as error:
        if repair:
            raise
        yield Finding("queue", f"not looked at, since {error}", True)
        yield from _examine_server(error.url)
    yield _examine_allow_list(folder)


def _examine_server(url: str | None) -> Iterator[Finding]:
    """What a running one says of itself."""
    if url is None:
        return
    try:
        with Client(url) as client:
            parts = client.readiness().parts
    except ChoraleError as error:
        yield Finding("server", str(error), False)
        return
    yield from (Finding(part.name, part.message, False) for part in parts if not part.ready)


def _examine_access(folder: DataFolder) -> Iterator[Finding]:
    places = {
        "data directory": folder.path,
        "queue's folder": folder.queue,
        "store": folder.store,
        "work folder": folder.work,
        "logs": folder.log("").parent,
    }
    for part, path in places.items():
        trouble = _find_obstacle(path) if path.exists() else None
        yield Finding(part, trouble or f"{path} can be written", trouble is None)


def _find_obstacle(path: Path) -> str | None:
    """Why a stack could not work in this folder: something in it belongs to somebody else, or the disk is full."""
    try:
        with tempfile.NamedTemporaryFile(dir=path) as file:
            file.write(bytes(4096))
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    closed = [each for each in path.iterdir() if not os.access(each, os.R_OK | os.W_OK)]
    if closed:
        return f"{closed[0]} may not be read and written: its owner is user {closed[0].stat().st_uid}"
    return None


def _examine_queue(queue: Path, *, repair: bool) -> Iterator[Finding]:
    try:
        yield from _mend_queue(queue, repair=repair)
    except StackError as error:
        yield Finding("queue", str(error), False)


def _mend_queue(queue: Path, *, repair: bool) -> Iterator[Finding]:
    while damage := find_damage(queue, is_tried=True):
        if not repair:
            remedy = "is mended at the next start" if damage.is_safe else "needs `chorale doctor --repair`"
            yield Finding("queue", f"{damage.what}: this {remedy}, which costs {damage.loss}", False)
            return
        try:
            damage.mend()
        except UnwritableError as error:
            yield Finding("queue", f"{damage.what}, and cannot be mended yet: {error}", False)
            return
        kept = "; what was taken away is kept beside it, in damaged-*"
        yield Finding("queue", f"{damage.what}: mended, which cost {damage.loss}{kept}", True)
    yield Finding("queue", "a queue server starts with its log", True)


def _examine_allow_list(folder: DataFolder) -> Finding:
    try:
        models = AllowListFile(folder.models_file).read().models
    except (AllowListError, OSError) as error:
        return Finding("allow-list", str(error), False)
    return Finding("allow-list", f"{len(models)} entries", True)
