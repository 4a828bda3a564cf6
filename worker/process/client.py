"""The consumer's end of the pipe to the engine process: torch runs only there, and in its rank processes."""

import logging
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.errors import EngineLostError
from worker.process.protocol import (
    LOST_RANK_EXIT,
    Command,
    Failed,
    Generate,
    Generated,
    Report,
    Stop,
    Stopped,
)
from worker.process.standstill import STILL_S, Standstill
from worker.settings import WorkerSettings

_SILENT_S = 60.0  # a report comes with every few tiles
_FINAL = Generated | Stopped | Failed
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Child:
    process: SpawnProcess
    pipe: Connection
    standstill: Standstill


class EngineProcess:
    """Spawns the engine process, talks to it, and replaces it.

    Nothing here imports torch, and no call takes longer than its timeout.

    Args:
        scratch: folder of this worker, which is removed with it, for files that a killed process leaves.
        still_s: how long the process may be stopped by a signal.
        silent_s: how long it may work without a report before that is told.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        scratch: Path,
        *,
        still_s: float = STILL_S,
        silent_s: float = _SILENT_S,
    ) -> None:
        self._settings = settings
        self._scratch = scratch
        self._still_s = still_s
        self._silent_s = silent_s
        self._devices = settings.devices.split(",")
        self._lost: list[str] = []
        self._child = self._spawn()
        self._busy = False
        self._reported_at = 0.0

    @property
    def trouble(self) -> str | None:
        """Why this worker has less than its operator asked for, or may be stuck; None if all is well."""
        silent_s = time.monotonic() - self._reported_at if self._busy else 0.0
        said = [f"no progress for {silent_s:.0f} s"] if silent_s > self._silent_s else []
        if self._lost:
            said += [f"lost {', '.join(self._lost)}; continues on {', '.join(self._devices)}"]
        return f"degraded: {'; '.join(said)}" if said else None

    def restart(self) -> None:
        """Kill the present process and spawn a new one, which loads the model in the background.

        A rank that died by itself is left out from then on: its device may be the cause. Call this
        from the main thread: the process dies with the thread that spawned it.
        """
        self._leave_out_lost_rank()
        self.close()
        self._child, self._busy = self._spawn(), False

    def send(self, command: Command) -> None:
        """Send a command; the process reads it once the model is loaded.

        Raises:
            EngineLostError: the process died.
        """
        try:
            self._child.pipe.send(command)
        except OSError as error:
            raise EngineLostError(self._describe_end()) from error
        if isinstance(command, Generate):
            self._busy, self._reported_at = True, time.monotonic()

    def receive(self, timeout_s: float) -> Report | None:
        """Wait for the next report.

        Raises:
            EngineLostError: the process died, or it or one of its ranks was stopped by a signal and not continued.
        """
        pipe = self._child.pipe
        ready = wait([pipe, self._child.process.sentinel], timeout_s)
        if pipe in ready:
            return self._receive(pipe)
        if ready:
            raise EngineLostError(self._describe_end())
        if trouble := self._child.standstill.find():
            raise EngineLostError(f"the engine process {self._child.process.pid} {trouble}")
        return None

    def stop_job(self, timeout_s: float) -> None:
        """End the present job; a process that does not answer in time is replaced."""
        deadline = time.monotonic() + timeout_s
        try:
            if self._busy:
                self.send(Stop(finish_step=False))
            while self._busy and time.monotonic() < deadline:
                self.receive(0.1)
        except EngineLostError:
            self._busy = True
        if self._busy:
            self.restart()

    def check(self) -> Report | None:
        """Between jobs: read the next report, replace a process that died or was stopped."""
        try:
            return self.receive(0)
        except EngineLostError as error:
            _log.warning("%s; it is replaced", error)
            self.restart()
            return None

    def close(self) -> None:
        """Kill the process, which ignores SIGTERM and SIGINT."""
        process, pipe = self._child.process, self._child.pipe
        if not pipe.closed:
            process.kill()
            process.join()
            process.close()
            pipe.close()

    def _spawn(self) -> _Child:
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        # Not a daemon: those may not have children, and the other ranks are its children.
        process = spawning.Process(
            target=_run, args=(theirs, self._settings, self._devices, self._scratch), name="engine"
        )
        process.start()
        theirs.close()  # otherwise the pipe would stay open after the process has ended
        assert process.pid is not None
        ranks = len(self._devices) > 1
        return _Child(process, ours, Standstill(process.pid, children=ranks, still_s=self._still_s))

    def _leave_out_lost_rank(self) -> None:
        rank = (self._child.process.exitcode or 0) - LOST_RANK_EXIT
        if 0 < rank < len(self._devices):
            self._lost.append(self._devices.pop(rank))
            _log.error("rank %d died; this worker is %s", rank, self.trouble)

    def _receive(self, pipe: Connection) -> Report:
        try:
            report: Report = pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineLostError(self._describe_end()) from error
        self._reported_at = time.monotonic()
        if isinstance(report, _FINAL):
            self._busy = False
        return report

    def _describe_end(self) -> str:
        process = self._child.process
        process.join(1)
        return f"the engine process {process.pid} ended with exit code {process.exitcode}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _run(pipe: Connection, settings: WorkerSettings, devices: list[str], scratch: Path) -> None:
    # Imported in the new process only: the consumer stays free of torch.
    from worker.adapters.source import ModelSource
    from worker.process.server import serve

    source = ModelSource(settings.model, settings.models_file, scratch, settings.dtype)
    serve(
        pipe,
        source,
        devices,
        settings.decode_memory_mb,
        settings.checkpoint_interval_s,
        digested=settings.provenance_certificate is not None,
    )
