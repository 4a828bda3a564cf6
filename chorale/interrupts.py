"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever it is just then; out of a destructor or a callback it is printed and forgotten
(documentation of `signal`: "Signal handlers and exceptions").
"""

import signal
from types import FrameType

_came = False


def heed_interrupts() -> None:
    """SIGTERM stops like Ctrl-C, so that the parts of a stack are stopped in order.

    SIGINT stays ignored where it is, as in the background of a script.
    """
    global _came
    _came = False
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def raise_if_interrupted() -> None:
    """For loops that run until Ctrl-C.

    Raises:
        KeyboardInterrupt: one came, whatever became of it.
    """
    if _came:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    raise KeyboardInterrupt
