"""A process that lives only for its parent."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tie_to_parent() -> None:
    """Die with the thread that spawned this process, and of nothing gentler.

    Ctrl-C and service managers signal the whole group; the consumer decides when to stop. Death by
    the kernel's hand is Linux's; elsewhere the end of the pipe is noticed at the next tile.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
