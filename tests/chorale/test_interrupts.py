"""Ctrl-C in the middle of anything."""

import os
import signal
from collections.abc import Iterator

import pytest

from chorale.interrupts import heed_interrupts, raise_if_interrupted


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    heed_interrupts()  # forgets that one came
    for number, handler in before.items():
        signal.signal(number, handler)


class Interrupted:
    """In the destructor of this."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self._number)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_forgets_is_raised_at_the_next_look(number: signal.Signals) -> None:
    heed_interrupts()
    raise_if_interrupted()
    Interrupted(number)  # Python prints it, and goes on
    with pytest.raises(KeyboardInterrupt):
        raise_if_interrupted()


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heed_interrupts()
    os.kill(os.getpid(), signal.SIGINT)
    raise_if_interrupted()
