"""`python -m chorale.guard COMMAND...`: run a command that ends with its owner, even if the owner is killed.

The owner holds the other end of standard input. It is read until it closes, which the kernel does
even for an owner that was killed.
"""

import os
import select
import signal
import subprocess
import sys
from threading import Event
from types import FrameType

_LOOK_S = 0.2
_GRACE_S = 60.0  # a worker ends at its next checkpoint, and a step of a large picture takes a while


def main() -> int:
    """Exits with the command's code."""
    stop = stop_on_signals()
    # In the group that the owner made for this guard, so that what the command starts is in it too.
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    while child.poll() is None and not stop.is_set() and not owner_is_gone():
        pass
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)
        raise


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


if __name__ == "__main__":
    sys.exit(main())
