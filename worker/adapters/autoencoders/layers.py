"""What the written-out autoencoders share."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.vae.operations import Local, Operation, Shrink

SizedOperations = Iterator[tuple[Operation, int]]
"""Operations in order, each with the channels of its output."""


EncoderOperations = Iterator[Operation | Shrink]


def without_channels(operations: Iterable[tuple[Operation, int]]) -> Iterator[Operation]:
    """Only a decoder's memory plan counts them."""
    return (operation for operation, _ in operations)


def list_convolution(layer: nn.Conv2d) -> tuple[Local, int]:
    return Local(layer, reach=layer.kernel_size[0] // 2), layer.out_channels


_WIDEST_FUSED = 256
_QUERIES, _KEYS = 8192, 16384  # in a block; what they say to each other takes 256 MiB
_SAMPLE = 4096


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Vaswani et al. 2017, eq. 1: (1, heads, M, C) asks (1, heads, N, C); (1, heads, M, C)."""
    wide = queries.shape[1] == 1 and queries.shape[-1] > _WIDEST_FUSED and keys.shape[-2] >= _KEYS
    if wide and queries.is_cuda and queries.dtype is torch.bfloat16:
        return attend_in_blocks(queries[0, 0], keys[0, 0], values[0, 0])[None, None]
    return F.scaled_dot_product_attention(queries, keys, values)


def attend_in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, rows: int = _QUERIES, columns: int = _KEYS
) -> Tensor:
    """The same for one head, (M, C) asks (N, C), with no more than `rows` x `columns` scores at a time.

    A softmax does not change when something is taken from all scores of a query. Taken is the best
    score of a sample of keys: no pass for the true maximum is needed, nothing is lost below, and small
    scores are told exactly in bfloat16. Should another key be better by 88, the result is not finite;
    whoever asks then asks again in float32.
    """
    scaled = (queries.float() * queries.shape[-1] ** -0.5).to(queries.dtype)
    sample = keys[:: len(keys) // _SAMPLE | 1]  # an odd stride meets every column of a canvas
    across = values.T.contiguous()
    return torch.cat([_answer(part, sample, keys, across, columns) for part in scaled.split(rows)])


def _answer(queries: Tensor, sample: Tensor, keys: Tensor, values: Tensor, columns: int) -> Tensor:
    """One block of queries (m, C) with values (C, N): (m, C)."""
    expected = F.linear(sample, queries).amax(0)
    total = torch.zeros(len(values), len(queries), device=queries.device)
    weight = torch.zeros(len(queries), device=queries.device)
    for key, value in zip(keys.split(columns), values.split(columns, dim=1), strict=True):
        fit = F.linear(key, queries, -expected).exp_()
        weight += fit.sum(0, dtype=torch.float32)
        total += value @ fit
    return (total / weight).T.to(queries.dtype)
