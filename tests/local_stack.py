"""Chorale's own local stack with the closed-form model, for tests that follow it from outside."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chorale.data_folder import DataFolder
from chorale.local import LocalStack, StackOptions
from tests.worker.processes import find_children


@contextmanager
def toy_stack(folder: Path, *, delay_ms: int = 0) -> Iterator[LocalStack]:
    """A ready stack that takes `delay_ms` for each tile."""
    options = StackOptions(models=(f"toy:delay_ms={delay_ms}" if delay_ms else "toy",), devices="cpu")
    with LocalStack(DataFolder(folder), options) as stack:
        stack.await_ready()
        yield stack


def find_part(owner: int, module: str) -> int:
    """Process id of the module that runs under a guard of `owner`."""
    for guard in find_children(owner):
        for child in find_children(guard):
            if module in _arguments(child):
                return child
    raise LookupError(f"{owner} runs no {module}")


def find_all(word: str) -> list[int]:
    """Process ids of everything with `word` on its command line or in its environment."""
    listing = subprocess.run(
        ["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=1) for line in listing.stdout.splitlines()]
    return [int(pid) for pid, *rest in lines if rest and word in rest[0] and "<defunct>" not in rest[0]]


def _arguments(pid: int) -> str:
    return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout
