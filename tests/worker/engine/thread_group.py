"""Ranks as threads of one process."""

from dataclasses import dataclass
from threading import Barrier

from torch import Tensor


@dataclass
class ThreadGroup:
    rank: int
    size: int
    threads: Barrier
    board: dict[int, Tensor]
    verdicts: dict[int, bool]

    def barrier(self, *, ok: bool = True) -> bool:
        self.verdicts[self.rank] = ok
        self.threads.wait()
        all_ok = all(self.verdicts.values())
        self.threads.wait()
        return all_ok

    def abort(self) -> None:
        self.threads.abort()

    def all_gather(self, own: Tensor) -> list[Tensor]:
        self.board[self.rank] = own
        self.threads.wait()
        gathered = [self.board[rank] for rank in range(self.size)]
        self.threads.wait()
        return gathered


def thread_groups(size: int) -> list[ThreadGroup]:
    """All ranks of one group; run each in its own thread."""
    barrier, board, verdicts = Barrier(size, timeout=30), dict[int, Tensor](), dict[int, bool]()
    return [ThreadGroup(rank, size, barrier, board, verdicts) for rank in range(size)]
