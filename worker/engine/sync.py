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

    def meet(self) -> None:
        """Wait until the leader goes on.

        Raises:
            DismissedError: the leader's caller has stopped.
        """
        ...

    def gather(self, own: Tensor) -> list[Tensor]:
        """Every rank's tensor, by rank; all have one shape and type."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One rank."""

    rank: int = 0
    size: int = 1

    def meet(self) -> None:
        return

    def gather(self, own: Tensor) -> list[Tensor]:
        return [own]
