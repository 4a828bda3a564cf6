"""One process of the stack: start, supervise, restart, stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from api_schemas.settings import REFUSED_EXIT
from chorale.disk_space import describe_space
from chorale.guard import HUNG_EXIT, SIGNAL_EXIT
from chorale.health import Health
from chorale.log_files import rotate

_LONGEST_PAUSE_S = 8.0
# Some end by the signal that tells them to.
_TOLD_TO_END = (0, -signal.SIGTERM, SIGNAL_EXIT + signal.SIGTERM)
_LAST_BYTES = 16_384  # of a log, in which the last line is looked for


@dataclass(frozen=True, slots=True)
class Death:
    """How a part ended.

    Args:
        refused: it says that a restart would not help.
        in_a_row: number of deaths without a healthy life in between.
        pause_s: until it starts again.
    """

    text: str
    refused: bool
    in_a_row: int
    pause_s: float


@dataclass
class Part:
    """A module that runs in a process of its own, in its own process group.

    Args:
        arguments: module and its arguments, as after `python -m`.
        guard: options of the `chorale.guard` under which it runs, so that it ends with this process; None without.
        healthy_s: a life this long is no failed start.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    guard: Sequence[str] | None = ()
    healthy_s: float = 10.0
    _process: subprocess.Popen[bytes] | None = None
    _health: Health | None = None
    _started_at: float = 0.0
    _deaths: int = 0
    _again_at: float = 0.0
    _log_bytes: int = 0

    def start(self) -> None:
        """Start the process; standard output and error go to the log."""
        command = [sys.executable, "-m", *self.arguments]
        self._refusal.unlink(missing_ok=True)
        if self.guard is not None:
            command = [sys.executable, "-m", "chorale.guard", *self.guard, *command]
        with self.log.open("ab") as log:
            self._log_bytes = log.tell()
            # In its own session: Ctrl-C in the terminal reaches only this process, which stops parts in order.
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment, "CHORALE_REFUSAL_FILE": str(self._refusal)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._health = Health(self._process.pid)
        self._started_at = time.monotonic()

    def start_in(self, seconds: float) -> None:
        """Have `look_after` start it then."""
        self._again_at = time.monotonic() + seconds

    def look_after(self) -> Death | None:
        """Start it again, after a pause, if it died; a stopped guard is killed, for it guards nothing."""
        rotate(self.log)
        if self._process is None:
            return self._start_again() if time.monotonic() >= self._again_at else None
        code = self._process.poll()
        if code is None:
            if self._health and self._health.look():
                self._kill_group(self._process)
            return None
        self._kill_group(self._process)  # if the guard was killed, it may have left something
        self._forget(self._process)
        return self._note_death(self._describe_end(code), refused=code == REFUSED_EXIT)

    def _start_again(self) -> Death | None:
        try:
            self.start()
        except OSError as error:
            self._started_at = time.monotonic()
            return self._note_death(f"cannot be started: {error}{describe_space(self.log)}", refused=False)
        return None

    def _note_death(self, how: str, *, refused: bool) -> Death:
        now = time.monotonic()
        self._deaths = 1 if now - self._started_at > self.healthy_s else self._deaths + 1
        pause_s = find_pause(self._deaths)
        self._again_at = now + pause_s
        return Death(f"{self.name} {how}", refused, self._deaths, pause_s)

    def ask_to_stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def await_end(self, timeout_s: float) -> str | None:
        """Kill what does not end in time, with all that it started; says how it ended, unless as it was told to."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._kill_group(self._process)
            code = self._process.wait()
        self._kill_group(self._process)
        self._forget(self._process)
        return None if code in _TOLD_TO_END else f"{self.name} {self._describe_end(code)}"

    def _kill_group(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left, or (macOS) only what has ended
            os.killpg(process.pid, signal.SIGKILL)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin:
            process.stdin.close()
        self._process = None

    @property
    def _refusal(self) -> Path:
        """File for the reason why it refuses to start; in the log, other lines may follow."""
        return self.log.with_suffix(".refusal")

    def _describe_end(self, code: int) -> str:
        number = -code if code < 0 else code - SIGNAL_EXIT
        with suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
        if code == HUNG_EXIT:
            return self._find_last_line()
        reason = self._read_refusal() if code == REFUSED_EXIT else None
        return f"ended with code {code}: {reason or self._find_last_line()}"

    def _read_refusal(self) -> str | None:
        return self._refusal.read_text(errors="replace").strip() if self._refusal.is_file() else None

    def _find_last_line(self) -> str:
        """Of this life; it leaves none where its log has no space."""
        with self.log.open("rb") as file:
            size = self.log.stat().st_size
            begun = self._log_bytes if self._log_bytes <= size else 0  # rotated since
            file.seek(max(begun, size - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), None)
        return said or f"no output{describe_space(self.log)}"


def find_pause(deaths: int) -> float:
    """Seconds until the next try, after so many in a row that failed."""
    return min(2.0 ** min(deaths, 10) / 4, _LONGEST_PAUSE_S)
