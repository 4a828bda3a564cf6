"""What the lists of operations share: checked access to parts, convolutions, attention."""

from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.adapters.errors import UnknownFamilyError
from worker.engine.vae.operations import Local, Operation, Shrink

M = TypeVar("M", bound=nn.Module)
SizedOperations = Iterator[tuple[Operation, int]]
"""Operations in order, each with the channels of its output."""

EncoderOperations = Iterator[Operation | Shrink]


def without_channels(operations: Iterable[tuple[Operation, int]]) -> Iterator[Operation]:
    """The operations alone: only a decoder's memory plan counts channels."""
    return (operation for operation, _ in operations)


def require(kind: type[M], part: object) -> M:
    """A part of an autoencoder as what it is: diffusers types most of them as any module, or none.

    Raises:
        UnknownFamilyError: it is of another class, whose operations are not written out.
    """
    if not isinstance(part, kind):
        raise UnknownFamilyError(
            f"vae: holds a {type(part).__name__} in place of a {kind.__name__}; allowed: autoencoders as "
            "diffusers makes them"
        )
    return part


def require_each(kind: type[M], parts: object) -> list[M]:
    """The same of a list of modules, which may be absent."""
    listed = cast(Iterable[object], parts or ())
    return [require(kind, part) for part in listed if part is not None]


def list_convolution(layer: nn.Conv2d) -> tuple[Local, int]:
    return Local(layer, reach=layer.kernel_size[0] // 2), layer.out_channels


_WIDEST_FUSED = 256
_QUERIES, _KEYS = 8192, 16384  # in a block, whose scores take 256 MiB
_SAMPLE = 4096


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Vaswani et al. 2017, eq. 1: queries (1, heads, M, C), keys and values (1, heads, N, C) to (1, heads, M, C)."""
    wide = queries.shape[1] == 1 and queries.shape[-1] > _WIDEST_FUSED and keys.shape[-2] >= _KEYS
    if wide and queries.is_cuda and queries.dtype is torch.bfloat16:
        return attend_in_blocks(queries[0, 0], keys[0, 0], values[0, 0])[None, None]
    return F.scaled_dot_product_attention(queries, keys, values)


def attend_in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, rows: int = _QUERIES, columns: int = _KEYS
) -> Tensor:
    """The same for one head, queries (M, C) and keys (N, C), with no more than `rows` x `columns` scores at a time.

    A softmax does not change when one number is subtracted from all scores of a query. Subtracted is the best
    score of a sample of keys: no pass for the true maximum is needed, nothing is lost below, and small
    scores are exact in bfloat16. Should another key be better by 88, the result is not finite; the decoder
    then computes again in float32.
    """
    scaled = (queries.float() * queries.shape[-1] ** -0.5).to(queries.dtype)
    sample = keys[:: len(keys) // _SAMPLE | 1]  # an odd stride meets every column of a canvas
    across = values.T.contiguous()
    parts = torch.split(scaled, rows)
    return torch.cat([_attend_block(part, sample, keys, across, columns) for part in parts])


def _attend_block(queries: Tensor, sample: Tensor, keys: Tensor, values: Tensor, columns: int) -> Tensor:
    """One block of queries (m, C) with values (C, N): (m, C)."""
    expected = F.linear(sample, queries).amax(0)
    total = torch.zeros(len(values), len(queries), device=queries.device)
    weight = torch.zeros(len(queries), device=queries.device)
    for key, value in zip(torch.split(keys, columns), torch.split(values, columns, dim=1), strict=True):
        fit = F.linear(key, queries, -expected).exp_()
        weight += fit.sum(0, dtype=torch.float32)
        total += value @ fit
    return (total / weight).T.to(queries.dtype)
