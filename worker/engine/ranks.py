"""ProcessGroup: the processes of one worker that share a canvas, each with one device.

Every rank holds the whole canvas and runs the same `generate`; they differ only in which tiles they
predict. The leader, rank 0, alone has a caller who may stop it, so the others wait for it at every barrier.
"""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from worker.engine.errors import DismissedError, RankLostError


class Group(Protocol):
    """All ranks of an ensemble, as one of them sees them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def barrier(self, *, ok: bool = True) -> bool:
        """Wait until all ranks are here; whether all of them could do what they had to.

        Raises:
            DismissedError: the leader's caller has stopped, or another rank broke.
        """
        ...

    def abort(self) -> None:
        """Say, instead of coming to another barrier, that this rank will not go on."""
        ...

    def all_gather(self, own: Tensor) -> list[Tensor]:
        """Every rank's tensor, by rank; all have one shape and type. Call `barrier` first: nobody may be missing."""
        ...


@dataclass(frozen=True, slots=True)
class SingleRank:
    """One rank."""

    rank: int = 0
    size: int = 1

    def barrier(self, *, ok: bool = True) -> bool:
        return ok

    def abort(self) -> None:
        return

    def all_gather(self, own: Tensor) -> list[Tensor]:
        return [own]


# The leader may wait for its consumer, the others then wait for the leader. Death is noticed at once.
_TIMEOUT = timedelta(hours=24)


class _RankStatus(IntEnum):
    """What a rank says at a barrier; the lowest of all counts."""

    DISMISSED = 0
    BROKEN = 1
    SHORT = 2
    OK = 3


class ProcessGroup:
    """One process of several, each with its own device.

    What ranks decide together goes between hosts (gloo); what they have computed goes between
    devices and is queued there: `all_gather` on GPUs does not wait for it.
    """

    def __init__(self, rank: int, size: int, device: torch.device, meeting_point: Path) -> None:
        """
        Args:
            meeting_point: a file that all ranks can write and that does not exist yet.
        """
        self.rank, self.size = rank, size
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Nothing of this is for other machines, whatever their names resolve to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = FileStore(str(meeting_point), size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)

    def barrier(self, *, ok: bool = True) -> bool:
        """Wait until all ranks are here; whether all of them could do what they had to.

        Raises:
            DismissedError: the leader's caller has stopped, or another rank broke.
            RankLostError: a rank has died.
        """
        verdict = self._agree(_RankStatus.OK if ok else _RankStatus.SHORT)
        if verdict <= _RankStatus.BROKEN:
            raise DismissedError("the leader has stopped" if not verdict else "another rank broke")
        return verdict is _RankStatus.OK

    def abort(self) -> None:
        """Say, instead of coming to another barrier, that this rank will not go on: the leader's word ends the job
        for all, another's makes the leader ask why."""
        self._agree(_RankStatus.BROKEN if self.rank else _RankStatus.DISMISSED)

    def all_gather(self, own: Tensor) -> list[Tensor]:
        """Every rank's tensor, by rank; all have one shape and type. Call `barrier` first: nobody may be missing.

        Raises:
            RankLostError: a rank has died.
        """
        octets = own.contiguous().flatten().view(torch.uint8)  # gloo does not know every type
        gathered = [torch.empty_like(octets) for _ in range(self.size)]
        try:
            dist.all_gather(gathered, octets)  # pyright: ignore[reportUnknownMemberType]
        except RuntimeError as error:
            raise RankLostError(str(error)) from error
        return [each.view(own.dtype).view(own.shape) for each in gathered]

    def _agree(self, own: _RankStatus) -> _RankStatus:
        word = torch.tensor([int(own)])
        try:
            dist.all_reduce(word, dist.ReduceOp.MIN)  # pyright: ignore[reportUnknownMemberType]
        except RuntimeError as error:
            raise RankLostError(str(error)) from error
        return _RankStatus(int(word))
