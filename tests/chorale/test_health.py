"""A process that does not die, but does nothing any more, is noticed; one that is only busy is left alone."""

import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from chorale.health import Health


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def stop(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGSTOP)
    while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def find_troubles(health: Health, looks: int) -> set[str]:
    return {trouble for _ in range(looks) if (trouble := health.look())}


def test_a_stopped_process_is_noticed_unless_it_goes_on_soon(child: subprocess.Popen[bytes]) -> None:
    health = Health(child.pid)
    assert find_troubles(health, 60) == set()
    stop(child)
    assert find_troubles(health, 30) == set()
    child.send_signal(signal.SIGCONT)
    assert find_troubles(health, 30) == set()
    stop(child)
    (trouble,) = find_troubles(health, 60)
    assert "SIGSTOP" in trouble


def test_silence_counts_after_the_first_answer_and_only_in_a_row(child: subprocess.Popen[bytes]) -> None:
    answers = iter([False] * 20 + [True, False, False, True, False, False, False])
    health = Health(child.pid, lambda: next(answers), every_s=0)
    assert find_troubles(health, 26) == set()
    assert "3 probes in a row" in (health.look() or "")
