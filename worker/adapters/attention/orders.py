"""What the attention layers of a network are told: to write their keys down, or which of those written to read."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worker.adapters.attention.style import Turn

Slot = Literal["conductor", "neighbourhood", "style"]
Page = tuple[Slot, torch.Size]
"""What was seen there, and the (N, C, h, w) of its crops."""
Mode = Literal["idle", "open", "write", "write style", "read", "read both", "read style"]


@dataclass
class Reading:
    """How the queries of a batch read a slot; its tensors keep their places in memory.

    Args:
        rows: which of the slot's keys are each query's, (B,).
        log_strength: (), float32.
        turn: from a token's own place to its place among the slot's keys.
        likeness: how far statistics are moved towards those of a style picture, ().
    """

    rows: Tensor
    log_strength: Tensor
    turn: Turn | None = None
    likeness: Tensor | None = None


@dataclass
class Orders:
    """What all layers of one network do at this moment.

    Args:
        mode: compiled code asks for this word: it is a guard for each form of a block that the compiler keeps, while
            whether a dictionary is empty was none (PyTorch 2.13).
        tokens: of the image in this forward, where text stands beside them.
        opens: a new page, in a forward that is not compiled: compiled code writes on pages that are there.
        own: by which places tokens are turned, where a style picture's statistics are measured or taken.
    """

    mode: Mode = "idle"
    tokens: int = 0
    opens: Page | None = None
    conductor: Reading | None = None
    neighbourhood: Reading | None = None
    style: Reading | None = None
    own: Turn | None = None

    def take(self, given: "Orders") -> None:
        self.mode, self.tokens, self.opens, self.own = given.mode, given.tokens, given.opens, given.own
        self.conductor, self.neighbourhood, self.style = given.conductor, given.neighbourhood, given.style

    @property
    def keeps_statistics(self) -> bool:
        return self.mode == "write style" or (self.opens is not None and self.opens[0] == "style")

    def list_reads(self) -> list[tuple[Slot, Reading]]:
        if self.mode == "read style" and self.style is not None:
            return [("style", self.style)]
        reads: list[tuple[Slot, Reading]] = []
        if self.mode in ("read", "read both") and self.conductor is not None:
            reads.append(("conductor", self.conductor))
        if self.mode == "read both" and self.neighbourhood is not None:
            reads.append(("neighbourhood", self.neighbourhood))
        return reads
