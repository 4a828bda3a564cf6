"""Commands as a user gives them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest.mock import patch

from chorale.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, folder: Path, **environment: str) -> Done:
    """A command in `folder`, in this process: a process of its own takes half a second until it begins."""
    out, said = _Terminal(), _Terminal()
    with _as_a_program(arguments, folder, environment), redirect_stdout(out), redirect_stderr(said):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.read_all(), said.read_all())


def run_alone(*arguments: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, where what is tried is the process: its encoding, its parts, what it leaves."""
    return subprocess.run(
        [sys.executable, "-m", "chorale.cli", *arguments],
        cwd=folder,
        env=_clean(environment),
        capture_output=True,
        text=True,
        timeout=120,
    )


class _Terminal(TextIOWrapper):
    """What is written to it is kept."""

    def __init__(self) -> None:
        self._kept = BytesIO()
        super().__init__(self._kept, "utf-8")

    def read_all(self) -> str:
        self.flush()
        return self._kept.getvalue().decode()


@contextmanager
def _as_a_program(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        patch.dict(os.environ, _clean(environment), clear=True),
        patch.object(sys, "argv", ["chorale", *arguments]),
        chdir(folder),
    ):
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _clean(environment: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CHORALE_")}
    return {**clean, "COLUMNS": "200", **environment}
