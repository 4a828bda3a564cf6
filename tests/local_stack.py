"""Chorale's own local stack with the closed-form model, for tests that follow it from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from chorale.data_folder import DataFolder
from chorale.local import LocalStack, StackOptions
from tests.worker.processes import command_of, environment_of, find_children


@contextmanager
def toy_stack(folder: Path, address: str = "toy") -> Iterator[LocalStack]:
    """A ready stack; `address` may have the options of `ToyOptions`."""
    options = StackOptions(models=(address,), devices="cpu")
    with LocalStack(DataFolder(folder), options) as stack:
        stack.await_ready()
        yield stack


def find_part(owner: int, module: str) -> int:
    """Process id of the module that runs under a guard of `owner`."""
    for guard in find_children(owner):
        for child in find_children(guard):
            if module in command_of(child):
                return child
    raise LookupError(f"{owner} runs no {module}")


def find_all(word: str) -> list[int]:
    """Process ids of everything with `word` on its command line or in its environment."""
    return [pid for pid in psutil.pids() if word in command_of(pid) or word in environment_of(pid)]
