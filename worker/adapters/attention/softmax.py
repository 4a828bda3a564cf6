"""Attention to several sets of keys in one softmax, each set with a weight of its own."""

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

_MASK_UNIT = 8  # PyTorch's kernels read masks in such pieces
_FLASH_MOST_WIDTH = 256  # of a head
_CUDNN_MOST_WIDTH = 128


@dataclass(frozen=True, slots=True)
class Source:
    """Keys and values beside a query's own.

    Args:
        query: the image's, turned to where it lies among these keys, (B, H, Q, D).
        keys: (B, H, K, D); so are `values`.
        log_weight: by which each logit is raised, ().
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    log_weight: Tensor


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, sources: list[Source], image: slice
) -> Tensor:
    """softmax over the own keys and, raised by their weights, those of all sources: (B, H, Q, D).

    Each set is attended to by a fused kernel, and weighted by its part of the common denominator (Dao et al. 2022,
    "FlashAttention", section 3.1).

    Args:
        mask: of the own keys, (B, 1 or H, 1 or Q, K): boolean, true where a key counts, or added to the logits.
        image: the queries that attend to the sources; others, of a text beside them, attend as ever.
    """
    output, norm = _attend(query, keys, values, mask)
    seen = _merge(output[:, :, image], norm[:, :, image], sources)
    if image.stop - image.start == query.shape[2]:
        return seen
    return torch.cat([output[:, :, : image.start], seen, output[:, :, image.stop :]], dim=2)


def _merge(output: Tensor, norm: Tensor, sources: list[Source]) -> Tensor:
    parts = [(output, norm)]
    for each in sources:
        other, its_norm = _attend(each.query, each.keys, each.values, None)
        parts.append((other, its_norm + each.log_weight))
    shares = torch.softmax(torch.stack([norm for _, norm in parts]), dim=0)[..., None].to(output.dtype)
    weighted = [each * share for (each, _), share in zip(parts, shares, strict=True)]
    return sum(weighted[1:], start=weighted[0])


def balance(own: int, others: int) -> float:
    """Log of the weight at which so many other keys count as much as the own ones."""
    return log(own / others)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(output, log of its denominator (B, H, Q)). No public call of PyTorch returns both on all devices."""
    aten = torch.ops.aten
    if query.device.type == "cpu":
        fitted = _as_bias(mask, query, keys)
        output, norm = aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values, attn_mask=fitted)
        return output, norm
    if query.device.type != "cuda":
        return _attend_plainly(query, keys, values, mask)
    halves, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    if mask is None and halves and width % 8 == 0 and width <= _FLASH_MOST_WIDTH:
        if width <= _CUDNN_MOST_WIDTH and _is_hopper(query.device):
            output, norm = aten._scaled_dot_product_cudnn_attention(query, keys, values, None, True)[:2]
            return output, norm.flatten(2)
        output, norm = aten._scaled_dot_product_flash_attention(query, keys, values)[:2]
        return output, norm
    bias = _as_bias(mask, query, keys)
    output, norm = aten._scaled_dot_product_efficient_attention(query, keys, values, bias, True)[:2]
    return output, norm[..., : query.shape[2]]  # filled up to a multiple of 32


def _is_hopper(device: torch.device) -> bool:
    """Or later: where cuDNN's kernel takes two thirds of the other's time, and is what PyTorch chooses itself."""
    return torch.version.cuda is not None and torch.cuda.get_device_properties(device).major >= 9  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # not typed


def _as_bias(mask: Tensor | None, query: Tensor, keys: Tensor) -> Tensor | None:
    """A mask as what is added to the logits, (B, H, Q, K), in memory that PyTorch's kernels can read."""
    if mask is None:
        return None
    length = keys.shape[2]
    added = (
        mask
        if mask.dtype != torch.bool
        else torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    )
    padded = F.pad(added.to(query.dtype), (0, -length % _MASK_UNIT))[..., :length]
    return padded.expand(*query.shape[:3], length)


def _attend_plainly(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    logits = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    bias = _as_bias(mask, query, keys)
    logits = logits.float() if bias is None else logits.float() + bias
    return torch.softmax(logits, dim=-1).to(values.dtype) @ values, logits.logsumexp(-1)
