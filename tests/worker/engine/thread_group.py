"""Ranks as threads of one process."""

from dataclasses import dataclass
from threading import Barrier

from torch import Tensor


@dataclass
class ThreadGroup:
    rank: int
    size: int
    barrier: Barrier
    board: dict[int, Tensor]

    def meet(self) -> None:
        return

    def gather(self, own: Tensor) -> list[Tensor]:
        self.board[self.rank] = own
        self.barrier.wait()
        heard = [self.board[rank] for rank in range(self.size)]
        self.barrier.wait()
        return heard


def thread_groups(size: int) -> list[ThreadGroup]:
    """All ranks of one group; run each in its own thread."""
    barrier, board = Barrier(size), dict[int, Tensor]()
    return [ThreadGroup(rank, size, barrier, board) for rank in range(size)]
