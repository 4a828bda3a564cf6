"""One process of the stack: start, supervise, restart, stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chorale.errors import PartFailedError
from chorale.log_files import rotate

_REFUSED = 2  # exit code of a process that a restart would not help
_MOST_DEATHS = 5
_WINDOW_S = 60.0
_LONGEST_DELAY_S = 5.0


@dataclass
class Part:
    """A module that runs in a process of its own, in its own process group.

    Args:
        arguments: module and its arguments, as after `python -m`.
        guarded: whether it runs under `chorale.guard`, so that it ends with this process.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    guarded: bool = True
    _process: subprocess.Popen[bytes] | None = None
    _deaths: list[float] = field(default_factory=list[float])
    _again_at: float = 0.0

    def start(self) -> None:
        """Start the process; standard output and error go to the log."""
        command = [sys.executable, "-m", *self.arguments]
        self._refusal.unlink(missing_ok=True)
        if self.guarded:
            command = [sys.executable, "-m", "chorale.guard", *command]
        with self.log.open("ab") as log:
            # In its own session: Ctrl-C in the terminal reaches only this process, which stops parts in order.
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment, "CHORALE_REFUSAL_FILE": str(self._refusal)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def look_after(self) -> None:
        """Start it again if it died.

        Raises:
            PartFailedError: it keeps dying, or refuses to start.
        """
        rotate(self.log)
        now = time.monotonic()
        if self._process is None:
            if now >= self._again_at:
                self.start()
            return
        code = self._process.poll()
        if code is None:
            return
        self._forget(self._process)
        self._deaths = [death for death in self._deaths if now - death < _WINDOW_S] + [now]
        if code == _REFUSED or len(self._deaths) >= _MOST_DEATHS:
            raise PartFailedError(
                f"{self.name} ended with code {code}: {self._find_reason()} (log: {self.log})"
            )
        self._again_at = now + min(2.0 ** len(self._deaths) / 4, _LONGEST_DELAY_S)

    def ask_to_stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def await_end(self, timeout_s: float) -> None:
        """Kill what does not end in time, with all that it started."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._forget(self._process)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin:
            process.stdin.close()
        self._process = None

    @property
    def _refusal(self) -> Path:
        """File for the reason why it refuses to start; in the log, other lines may follow."""
        return self.log.with_suffix(".refusal")

    def _find_reason(self) -> str:
        if self._refusal.is_file():
            return self._refusal.read_text(errors="replace").strip()
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
