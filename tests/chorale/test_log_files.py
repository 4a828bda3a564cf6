"""Logs of the parts of a stack stay small, and their writers need not know."""

import subprocess
import sys
from pathlib import Path

from chorale.log_files import rotate

LARGEST = 10_000


def sizes(log: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(log.parent.iterdir())]


def test_a_log_in_use_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    """As a part writes it: a process that has the file open, and appends."""
    log = tmp_path / "service.log"
    write = "import sys\nfor line in sys.stdin: print(line[:-1] * 99, flush=True); print('done', file=sys.stderr, flush=True)"
    with (
        log.open("ab") as file,
        subprocess.Popen(
            [sys.executable, "-c", write],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        ) as writer,
    ):
        assert writer.stdin
        assert writer.stderr
        for number in range(1000, 2000):
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
            writer.stderr.readline()
            rotate(log, LARGEST)
        writer.stdin.close()
    assert len(sizes(log)) == 5
    assert max(sizes(log)) < LARGEST + 400
    text = "".join(path.read_text() for path in [*sorted(tmp_path.glob("*.log.*"), reverse=True), log])
    kept = [int(line[:4]) for line in text.splitlines()]
    assert kept == list(range(kept[0], 2000))  # no line is lost or comes twice, but the oldest


def test_a_small_log_and_one_that_is_missing_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    rotate(log, LARGEST)
    assert sizes(log) == []
    log.write_text("one line\n")
    rotate(log, LARGEST)
    assert log.read_text() == "one line\n"


def test_a_full_log_is_emptied_though_nothing_can_be_kept(tmp_path: Path) -> None:
    """Here a folder is in the way of the copy; on a full disk it is the space that lacks."""
    log = tmp_path / "service.log"
    log.write_bytes(b"x" * LARGEST)
    (tmp_path / "service.log.1").mkdir()
    rotate(log, LARGEST)
    assert log.stat().st_size == 0
