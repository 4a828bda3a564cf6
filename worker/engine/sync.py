"""How ranks listen to each other. A rank is one process with one device; a worker may have several.

Every rank holds the whole canvas and walks the same straight line; they differ only in which tiles
they sing. The leader, rank 0, alone has a caller who may stop it, so the others wait for it wherever
they meet.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """All ranks of an ensemble, as one of them sees them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def meet(self, *, fine: bool = True) -> bool:
        """Wait until all ranks are here; whether all of them could do what they had to.

        Raises:
            DismissedError: the leader's caller has stopped, or another rank broke.
        """
        ...

    def leave(self) -> None:
        """Say, instead of meeting once more, that this rank will not go on."""
        ...

    def gather(self, own: Tensor) -> list[Tensor]:
        """Every rank's tensor, by rank; all have one shape and type. Meet first: nobody may be missing."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One rank."""

    rank: int = 0
    size: int = 1

    def meet(self, *, fine: bool = True) -> bool:
        return fine

    def leave(self) -> None:
        return

    def gather(self, own: Tensor) -> list[Tensor]:
        return [own]
