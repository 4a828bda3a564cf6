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
    verdicts: dict[int, bool]

    def meet(self, *, fine: bool = True) -> bool:
        self.verdicts[self.rank] = fine
        self.barrier.wait()
        all_fine = all(self.verdicts.values())
        self.barrier.wait()
        return all_fine

    def leave(self) -> None:
        self.barrier.abort()

    def gather(self, own: Tensor) -> list[Tensor]:
        self.board[self.rank] = own
        self.barrier.wait()
        gathered = [self.board[rank] for rank in range(self.size)]
        self.barrier.wait()
        return gathered


def thread_groups(size: int) -> list[ThreadGroup]:
    """All ranks of one group; run each in its own thread."""
    barrier, board, verdicts = Barrier(size, timeout=30), dict[int, Tensor](), dict[int, bool]()
    return [ThreadGroup(rank, size, barrier, board, verdicts) for rank in range(size)]
