"""The settings of parts, checked before any of them is started: each is asked in a process of its own, in half a second."""

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from api_schemas.settings import REFUSED_EXIT
from chorale.errors import RefusedStartError

_OPTIONS: Final = {
    "CHORALE_DEVICES": "--devices",
    "CHORALE_HOST": "--host",
    "CHORALE_MODEL": "--model",
    "CHORALE_ROOT_PATH": "--root-path",
}
_PATIENCE_S: Final = 20.0
Check = tuple[str, Mapping[str, str]]
"""A package that has a `preflight`, and variables that it is given beside those of the environment."""


def check_parts(checks: Sequence[Check], typed: Collection[str]) -> list[str]:
    """
    Args:
        typed: variables whose values come from options.

    Returns:
        What is doubtful, a line each.

    Raises:
        RefusedStartError: a part would refuse to start.
    """
    asked = [_ask(*check) for check in checks]
    said = [_await(process) for process in asked]
    refused = [line for code, lines in said if code == REFUSED_EXIT for line in lines]
    if refused:
        raise RefusedStartError(_name_options("; ".join(dict.fromkeys(refused)), typed))
    # Of any other fault, such as memory that is short, the part itself tells.
    doubts = [line for code, lines in said if code == 0 for line in lines if line]
    return list(dict.fromkeys(doubts))


def _ask(package: str, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", f"{package}.preflight"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _await(process: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    """Exit code and lines; one that a disk holds up is not waited for."""
    try:
        said, _ = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return -1, []
    return process.returncode, said.splitlines()


def _name_options(text: str, typed: Collection[str]) -> str:
    for variable in typed:
        text = text.replace(f"{variable}=", f"{_OPTIONS[variable]} ")
    return text
