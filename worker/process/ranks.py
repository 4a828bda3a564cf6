"""Rank processes: spawned and supervised by the leader, which is the engine process itself."""

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
from worker.engine.ranks import Alone, Group, Ranks
from worker.errors import DeviceRefusedError, HopelessJobError
from worker.process.failures import describe
from worker.process.files import read_checkpoint
from worker.process.generation import generate_job
from worker.process.protocol import LOST_RANK_EXIT, Broke, Generate, Refused
from worker.process.warmup import explain, make_ready


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where a rank runs."""

    rank: int
    size: int
    device: str
    meeting_point: Path


@dataclass(frozen=True, slots=True)
class RankJob:
    """Take part in this job, whose plan the leader has made."""

    job: Generate
    plan: GenerationPlan
    checkpoint: Path | None


@dataclass(frozen=True, slots=True)
class RankIdle:
    """The rank has its model and nothing to do; `broke` says how the last job ended here."""

    broke: Broke | None = None


def serve_rank(pipe: Connection, source: ModelSource, seat: RankPlace) -> None:
    """Answer the leader until it is gone."""
    tie_to_parent()
    try:
        try:
            ready = make_ready(source, seat.device)
        except Exception as error:
            pipe.send(Refused(explain(error)))
            pipe.recv()  # to go now would look like death
            return
        pipe.send(RankIdle())
        group = Ranks(seat.rank, seat.size, ready.device, seat.meeting_point)
        while True:
            pipe.send(RankIdle(_take_part(ready.model, pipe.recv(), group)))
    except (EOFError, BrokenPipeError, ConnectionResetError, RankLostError):
        return  # the leader is gone, or will not get far


def _take_part(model: LoadedModel, part: RankJob, group: Ranks) -> Broke | None:
    """
    Raises:
        RankLostError: another rank has died.
    """
    try:
        resume = read_checkpoint(part.checkpoint)[0] if part.checkpoint else None
        deque(generate_job(model, part.job, part.plan, resume, group), maxlen=0)
        group.meet()
    except DismissedError:
        return None
    except RankLostError:
        raise
    except Exception as error:
        group.leave()
        return describe(error)
    return None


class RankProcesses:
    """Spawns the followers, which load the model while the leader does, and looks after them.

    Ranks cannot go on after one of them has died: the process then ends with an exit code
    that names the rank, and whoever owns it starts again with the others.

    Args:
        devices: one for each rank; the first is the leader's own.
    """

    def __init__(self, source: ModelSource, devices: Sequence[str]) -> None:
        self._folder = (  # none without others to meet: a killed process would leave it behind
            tempfile.TemporaryDirectory(prefix="ch-ranks-", ignore_cleanup_errors=True)
            if len(devices) > 1
            else None
        )
        self._meeting_point = Path(self._folder.name if self._folder else "") / "store"
        self._group: Group = Alone()
        self._closing = threading.Event()
        self._others = [
            self._spawn(source, RankPlace(rank, len(devices), device, self._meeting_point))
            for rank, device in enumerate(devices)
            if rank > 0
        ]
        if self._others:
            threading.Thread(target=self._end_with_any, name="watch-ranks", daemon=True).start()

    @property
    def size(self) -> int:
        return len(self._others) + 1

    def assemble(self, device: torch.device) -> None:
        """Wait until all have loaded the model, then join them into one group.

        Raises:
            DeviceRefusedError: a rank says why it cannot serve.
        """
        if self._others:
            self._await_all()
            self._group = Ranks(0, self.size, device, self._meeting_point)

    @contextmanager
    def begin(self, part: RankJob) -> Generator[Group]:
        """All ranks work on one job within this context, and wait for the next one after it.

        Raises:
            HopelessJobError: a rank could not go on; it says why.
            RankLostError: a rank has died.
        """
        self._send_all(part)
        try:
            yield self._group
            self._group.meet()
        except DismissedError as error:
            self._raise_why(error)
        except RankLostError:
            raise
        except BaseException:
            self._group.leave()
            self._await_all()
            raise
        else:
            self._await_all()

    def end_for_loss(self) -> None:
        """Leave this process to the watcher, which names the rank that died."""
        self._closing.wait(5)
        os._exit(1)

    def _raise_why(self, error: DismissedError) -> None:
        for broke in self._await_all():
            raise HopelessJobError(broke.code, broke.message, retryable=broke.retryable) from error
        raise error

    def _send_all(self, part: RankJob) -> None:
        try:
            for _, pipe in self._others:
                pipe.send(part)
        except OSError as error:
            raise RankLostError(str(error)) from error

    def _await_all(self) -> list[Broke]:
        """Wait until all have nothing to do; what broke them since they were asked last."""
        try:
            answers: list[RankIdle | Refused] = [pipe.recv() for _, pipe in self._others]
        except (EOFError, OSError) as error:
            raise RankLostError(str(error)) from error
        for answer in answers:
            if isinstance(answer, Refused):
                raise DeviceRefusedError(answer.reason)
        return [answer.broke for answer in answers if isinstance(answer, RankIdle) and answer.broke]

    def _spawn(self, source: ModelSource, seat: RankPlace) -> tuple[SpawnProcess, Connection]:
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        process = spawning.Process(
            target=serve_rank, args=(theirs, source, seat), name=f"rank-{seat.rank}", daemon=True
        )
        process.start()
        theirs.close()  # else the end of the process would not end the pipe
        return process, ours

    def _end_with_any(self) -> None:
        sentinels = [process.sentinel for process, _ in self._others]
        gone = wait(sentinels)
        if not self._closing.is_set():
            rank = next(rank for rank, sentinel in enumerate(sentinels, start=1) if sentinel in gone)
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


def tie_to_parent() -> None:
    """Die with the thread that spawned this process, and of nothing gentler.

    Ctrl-C and service managers signal the whole group; the consumer decides when to stop. Death by
    the kernel's hand is Linux's; elsewhere the end of the pipe is noticed at the next tile.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
