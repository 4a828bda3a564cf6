"""Rank processes, spawned and supervised by rank 0, which is the engine process itself."""

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from worker.adapters.model import LoadedModel
from worker.adapters.source import ModelSource
from worker.engine.errors import DismissedError, RankLostError
from worker.engine.plan import GenerationPlan
from worker.engine.ranks import Group, ProcessGroup, SingleRank
from worker.errors import DeviceRefusedError, JobFailedError
from worker.native_memory import give_back, keep_little, keep_spare
from worker.process.failures import describe
from worker.process.generation import complete_plan, generate_job
from worker.process.protocol import LOST_RANK_EXIT, Failed, Generate, ModelRefused
from worker.process.warmup import explain, make_ready
from worker.source_files import SourceFiles
from worker.state_files import read_checkpoint


@dataclass(frozen=True, slots=True)
class RankConfig:
    """Which rank a process is, and where it runs.

    Args:
        size: number of ranks.
        rendezvous: a file that all ranks can write.
    """

    rank: int
    size: int
    device: str
    rendezvous: Path


@dataclass(frozen=True, slots=True)
class RankJob:
    """What all ranks are to make; the leader has planned it, but for what is large: each lays regions and source itself."""

    job: Generate
    plan: GenerationPlan
    checkpoint: Path | None
    source: SourceFiles | None = None


@dataclass(frozen=True, slots=True)
class RankReady:
    """The rank waits for a job; `failure` says why the last one could not go on here."""

    failure: Failed | None = None


def serve_rank(pipe: Connection, source: ModelSource, config: RankConfig) -> None:
    """Answer the leader until it is gone."""
    die_with_parent()
    keep_little()
    keep_spare()
    try:
        try:
            ready = make_ready(source, config.device)
        except Exception as error:
            pipe.send(ModelRefused(explain(error)))
            pipe.recv()  # to end now would look like a crash
            return
        pipe.send(RankReady())
        group = ProcessGroup(config.rank, config.size, ready.device, config.rendezvous)
        while True:
            pipe.send(RankReady(_run_job(ready.model, pipe.recv(), group)))
            give_back()
    except (EOFError, BrokenPipeError, ConnectionResetError, RankLostError):
        return  # the leader is gone, or will not get far


def _run_job(model: LoadedModel, part: RankJob, group: ProcessGroup) -> Failed | None:
    """Run the engine like the leader does, and drop what it yields.

    Raises:
        RankLostError: another rank has died.
    """
    try:
        resume = read_checkpoint(part.checkpoint)[0] if part.checkpoint else None
        plan = complete_plan(part.plan, part.job, part.source)
        deque(generate_job(model, part.job, plan, resume, group, part.source), maxlen=0)
        group.barrier()
    except DismissedError:
        return None
    except RankLostError:
        raise
    except Exception as error:
        group.abort()
        return describe(error)
    return None


class RankProcesses:
    """Spawns all other ranks, which load the model while the leader does, and supervises them.

    No rank can go on after another has died: this process then ends with an exit code that names the
    dead rank, and its owner starts again with the others.

    Args:
        devices: one for each rank; the first is the leader's own.
    """

    def __init__(self, source: ModelSource, devices: Sequence[str]) -> None:
        self._folder = (  # not for one rank: a killed process would leave it behind
            tempfile.TemporaryDirectory(prefix="ch-ranks-", ignore_cleanup_errors=True)
            if len(devices) > 1
            else None
        )
        self._rendezvous = Path(self._folder.name if self._folder else "") / "store"
        self._group: Group = SingleRank()
        self._closing = threading.Event()
        self._others = [
            self._spawn(source, RankConfig(rank, len(devices), device, self._rendezvous))
            for rank, device in enumerate(devices)
            if rank > 0
        ]
        if self._others:
            threading.Thread(target=self._exit_with_any, name="watch-ranks", daemon=True).start()

    @property
    def size(self) -> int:
        return len(self._others) + 1

    def assemble(self, device: torch.device) -> None:
        """Wait until all have loaded the model, then connect them.

        Raises:
            DeviceRefusedError: a rank says why it cannot serve.
        """
        if self._others:
            self._await_all()
            self._group = ProcessGroup(0, self.size, device, self._rendezvous)

    @contextmanager
    def begin(self, part: RankJob) -> Generator[Group]:
        """All ranks work on one job within this context, and wait for the next job after it.

        Raises:
            HopelessJobError: a rank could not go on; its message says why.
            RankLostError: a rank has died.
        """
        self._send_all(part)
        try:
            yield self._group
            self._group.barrier()
        except DismissedError as error:
            self._raise_failure(error)
        except RankLostError:
            raise
        except BaseException:
            self._group.abort()
            self._await_all()
            raise
        else:
            self._await_all()

    def exit_after_loss(self) -> None:
        """End this process after a rank has died; the thread that watches them sets the exit code."""
        self._closing.wait(5)
        os._exit(1)

    def _raise_failure(self, error: DismissedError) -> None:
        for failed in self._await_all():
            raise JobFailedError(failed.code, failed.message, retryable=failed.retryable) from error
        raise error

    def _send_all(self, part: RankJob) -> None:
        try:
            for _, pipe in self._others:
                pipe.send(part)
        except OSError as error:
            raise RankLostError(str(error)) from error

    def _await_all(self) -> list[Failed]:
        """Wait until all are ready; the failures of those that could not go on."""
        try:
            answers: list[RankReady | ModelRefused] = [pipe.recv() for _, pipe in self._others]
        except (EOFError, OSError) as error:
            raise RankLostError(str(error)) from error
        for answer in answers:
            if isinstance(answer, ModelRefused):
                raise DeviceRefusedError(answer.reason)
        return [answer.failure for answer in answers if isinstance(answer, RankReady) and answer.failure]

    def _spawn(self, source: ModelSource, config: RankConfig) -> tuple[SpawnProcess, Connection]:
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        process = spawning.Process(
            target=serve_rank, args=(theirs, source, config), name=f"rank-{config.rank}", daemon=True
        )
        process.start()
        theirs.close()  # otherwise the pipe would stay open after the process has ended
        return process, ours

    def _exit_with_any(self) -> None:
        sentinels = [process.sentinel for process, _ in self._others]
        ended = wait(sentinels)
        if not self._closing.is_set():
            rank = next(rank for rank, sentinel in enumerate(sentinels, start=1) if sentinel in ended)
            os._exit(LOST_RANK_EXIT + rank)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for process, pipe in self._others:
            process.kill()
            process.join()
            pipe.close()
        if self._folder is not None:
            self._folder.cleanup()


_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """End with the thread that spawned this process, and ignore SIGINT and SIGTERM.

    Ctrl-C and service managers signal the whole process group; the consumer decides when to stop. Only
    on Linux does the kernel end this process; elsewhere it notices the closed pipe at the next tile.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
