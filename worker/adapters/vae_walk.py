"""What the written-out autoencoders share."""

from collections.abc import Iterator

from torch import nn

from worker.engine.decoder import Local, Operation

Walk = Iterator[tuple[Operation, int]]
"""Operations in order, each with the channels of its output."""


def walk_convolution(layer: nn.Conv2d) -> tuple[Local, int]:
    return Local(layer, reach=layer.kernel_size[0] // 2), layer.out_channels
