"""A guarded command ends with its guard, and how it ended is known."""

import signal
import subprocess
import sys
from pathlib import Path

import chorale
from chorale.guard import SIGNAL_EXIT
from tests.chorale.test_local import await_true
from tests.worker.processes import find_children, is_running

GUARD = [sys.executable, "-m", "chorale.guard"]


def start_guard(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*GUARD, *command], stdin=subprocess.PIPE)


def test_a_killed_guard_leaves_nothing() -> None:
    guard = start_guard("sleep", "60")
    await_true(lambda: bool(find_children(guard.pid)))
    (child,) = find_children(guard.pid)
    guard.kill()
    await_true(lambda: not is_running(child))


def test_the_exit_code_tells_the_signal() -> None:
    guard = start_guard("sh", "-c", "kill -9 $$")
    assert guard.wait(30) == SIGNAL_EXIT + signal.SIGKILL


def test_a_stopped_command_ends_with_its_owner(tmp_path: Path) -> None:
    guard = start_guard("--lock", str(tmp_path / "lock"), "sh", "-c", "kill -STOP $$; sleep 60")
    await_true(lambda: bool(find_children(guard.pid)))
    assert guard.stdin
    guard.stdin.close()
    assert guard.wait(30) == SIGNAL_EXIT + signal.SIGTERM


def test_a_guard_imports_nothing_of_the_client() -> None:
    """Each part of a stack has one: with the client it would be three times as large."""
    check = "import chorale.guard, sys; assert not {'httpx', 'pydantic', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
    assert all(hasattr(chorale, name) for name in chorale.__all__)
