"""What the written-out autoencoders share."""

from collections.abc import Iterable, Iterator

from torch import nn

from worker.engine.decoder import Local, Operation
from worker.engine.encoder import Shrink

Walk = Iterator[tuple[Operation, int]]
"""Operations in order, each with the channels of its output."""


EncoderWalk = Iterator[Operation | Shrink]


def without_channels(walk: Iterable[tuple[Operation, int]]) -> Iterator[Operation]:
    """Only a decoder's memory plan counts them."""
    return (operation for operation, _ in walk)


def walk_convolution(layer: nn.Conv2d) -> tuple[Local, int]:
    return Local(layer, reach=layer.kernel_size[0] // 2), layer.out_channels
