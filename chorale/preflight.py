"""What is checked before parts are started: the address to bind, and their settings, of which each is asked in half a second."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from api_schemas.settings import REFUSED_EXIT
from chorale.errors import PortTakenError, RefusedStartError

_OPTIONS: Final = {
    "CHORALE_DEVICES": "--devices",
    "CHORALE_HOST": "--host",
    "CHORALE_MODEL": "--model",
    "CHORALE_ROOT_PATH": "--root-path",
}
_ANY_HOST: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
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


def write_host(host: str) -> str:
    """A bound address as it stands in URLs."""
    reached = _ANY_HOST.get(host, host)
    return f"[{reached}]" if ":" in reached else reached


def free_port(host: str) -> int:
    """
    Raises:
        RefusedStartError: this machine has no such address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except (OSError, UnicodeError) as error:
            raise _refuse_host(host, error) from error
        return probe.getsockname()[1]


def require_port(host: str, port: int) -> None:
    """
    Raises:
        PortTakenError: it is in use.
        RefusedStartError: this machine has no such address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise PortTakenError(host, port) from error
            raise _refuse_host(f"{host}, --port {port}", error) from error


def _refuse_host(where: str, error: OSError | UnicodeError) -> RefusedStartError:
    return RefusedStartError(f"--host {where} cannot be bound: {getattr(error, 'strerror', None) or error}")


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
