"""All ranks of a worker, as their leader drives them."""

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from worker.adapters.source import ModelSource
from worker.engine.errors import DismissedError, RankLostError
from worker.engine.ranks import Ranks
from worker.engine.sync import Alone, Group
from worker.errors import DeviceRefusedError, HopelessJobError
from worker.follower import Follow, Seat, Waiting, follow
from worker.messages import LOST_RANK_EXIT, Broke, Refused


class Choir:
    """Spawns the followers, which load the model while the leader does, and looks after them.

    Ranks that have sung with one that died cannot sing on: the process then ends with an exit code
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
        self._followers = [
            self._spawn(source, Seat(rank, len(devices), device, self._meeting_point))
            for rank, device in enumerate(devices)
            if rank > 0
        ]
        if self._followers:
            threading.Thread(target=self._end_with_any, name="watch-ranks", daemon=True).start()

    @property
    def size(self) -> int:
        return len(self._followers) + 1

    def assemble(self, device: torch.device) -> None:
        """Wait until all have loaded the model, then join hands.

        Raises:
            DeviceRefusedError: a follower says why it cannot sing.
        """
        if self._followers:
            self._await_all()
            self._group = Ranks(0, self.size, device, self._meeting_point)

    @contextmanager
    def begin(self, part: Follow) -> Generator[Group]:
        """All ranks sing one job within this context, and wait for the next one after it.

        Raises:
            HopelessJobError: a follower could not go on; it says why.
            RankLostError: a follower has died.
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

    def _send_all(self, part: Follow) -> None:
        try:
            for _, pipe in self._followers:
                pipe.send(part)
        except OSError as error:
            raise RankLostError(str(error)) from error

    def _await_all(self) -> list[Broke]:
        """Wait until all have nothing to do; what broke them since they were asked last."""
        try:
            answers: list[Waiting | Refused] = [pipe.recv() for _, pipe in self._followers]
        except (EOFError, OSError) as error:
            raise RankLostError(str(error)) from error
        for answer in answers:
            if isinstance(answer, Refused):
                raise DeviceRefusedError(answer.reason)
        return [answer.broke for answer in answers if isinstance(answer, Waiting) and answer.broke]

    def _spawn(self, source: ModelSource, seat: Seat) -> tuple[SpawnProcess, Connection]:
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        process = spawning.Process(
            target=follow, args=(theirs, source, seat), name=f"rank-{seat.rank}", daemon=True
        )
        process.start()
        theirs.close()  # else the end of the process would not end the pipe
        return process, ours

    def _end_with_any(self) -> None:
        sentinels = [process.sentinel for process, _ in self._followers]
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
        for process, pipe in self._followers:
            process.kill()
            process.join()
            pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
