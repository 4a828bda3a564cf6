"""Main memory of a worker: its own and that of what it has started."""

import subprocess
import sys

from worker.resident import measure_resident


def test_memory_of_children_counts() -> None:
    before = measure_resident()
    hold = "x = bytearray(64 << 20); x[::4096] = b'1' * (len(x) // 4096); print(flush=True); input()"
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        assert 64 << 20 <= measure_resident() - before < 128 << 20
        child.communicate(b"\n")
    assert measure_resident() - before < 32 << 20
