"""`python -m chorale.guard [--lock FILE] [--probe URL] COMMAND...`: run a command that ends with its owner.

The owner holds the other end of standard input. It is read until it closes, which the kernel does
even for an owner that was killed. The command ends with the guard too: on Linux by the kernel, elsewhere the
owner ends the guard's process group.
"""

import argparse
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event
from types import FrameType
from urllib.parse import urlsplit

from chorale.health import ANSWER_S, Health

HUNG_EXIT = 3  # the command was stopped or did not answer, and was killed
SIGNAL_EXIT = 128  # plus the number of the signal that killed the command, as shells have it
_LOOK_S = 0.2
_GRACE_S = 60.0  # a worker ends at its next checkpoint, for which it takes at most 45 s
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Exits with the command's code, `SIGNAL_EXIT` + N if signal N has killed it, or `HUNG_EXIT`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--probe")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    stop = stop_on_signals()
    kept = [hold_shared(given.lock)] if given.lock else []
    # In the group that the owner made for this guard, so that what the command starts is in it too.
    child = start_bound(given.command, kept)
    probe = partial(answers_http, given.probe) if given.probe else None
    if await_end(child, stop, Health(child.pid, probe)):
        return HUNG_EXIT
    if child.poll() is None:
        child.terminate()
        child.send_signal(signal.SIGCONT)  # a stopped process does not notice
    try:
        return as_exit_code(child.wait(_GRACE_S))
    except subprocess.TimeoutExpired:
        say(f"did not end within {_GRACE_S:.0f} s of being told to, and was killed")
        os.killpg(0, signal.SIGKILL)
        raise


def await_end(child: subprocess.Popen[bytes], stop: Event, health: Health) -> bool:
    """Wait until the child has ended or is to end; True if it hung and was killed."""
    while child.poll() is None and not stop.is_set() and not owner_is_gone():
        if trouble := health.look():
            child.kill()
            child.wait()
            say(f"{trouble}, and was killed")
            return True
    return False


def say(line: str) -> None:
    """Write to the log, unless its disk is full: whoever guards goes on without a word."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode(errors="backslashreplace"))


def start_bound(
    command: Sequence[str], kept: Sequence[int] = (), output: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when this one dies, where it can (Linux).

    Args:
        kept: file descriptors that it inherits.
        output: where it writes; None: where this one does.
    """
    bind = _die_with(os.getpid()) if sys.platform == "linux" else None
    # The guard has one thread, so that Python between fork and exec is safe.
    errors = None if output is None else subprocess.STDOUT
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, pass_fds=kept, preexec_fn=bind
    )


def hold_shared(path: Path) -> int:
    """A descriptor that shows, as long as any process has it open, that a part still runs."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def as_exit_code(code: int) -> int:
    """Of a return code, which is negative after a signal."""
    return SIGNAL_EXIT - code if code < 0 else code


def answers_http(url: str) -> bool:
    """Whether a server gives any answer, be it a refusal."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.request("GET", parts.path)
        connection.getresponse()
        return True
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def stop_on_signals() -> Event:
    """Set when this process gets a signal to end."""
    stop = Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    return stop


def owner_is_gone() -> bool:
    """Poll whether standard input has ended."""
    readable, _, _ = select.select([sys.stdin], [], [], _LOOK_S)
    return bool(readable) and not os.read(sys.stdin.fileno(), 64)


def _die_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return bind


if __name__ == "__main__":
    sys.exit(main())
