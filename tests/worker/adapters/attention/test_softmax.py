"""Weighted attention to several sets of keys against one softmax over all of them."""

from math import log

import pytest
import torch
from torch import Tensor

from worker.adapters.attention.softmax import Source, attend, balance


def attend_plainly(
    query: Tensor, turned: Tensor, sets: list[tuple[Tensor, Tensor, float]], bias: Tensor | None
) -> Tensor:
    """One softmax: the first set with `query` and `bias`, all others with `turned`, each logit raised by log(weight)."""
    scale = query.shape[-1] ** -0.5
    logits = [
        (turned if index else query) @ keys.transpose(-1, -2) * scale + log(weight)
        for index, (keys, _, weight) in enumerate(sets)
    ]
    if bias is not None:
        logits[0] = logits[0] + bias
    return torch.softmax(torch.cat(logits, -1), -1) @ torch.cat([values for _, values, _ in sets], 2)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


MASK = torch.arange(12) < torch.tensor([[12], [7], [9]])


@pytest.mark.parametrize("others", [1, 2])
@pytest.mark.parametrize("mask", [None, MASK[:, None, None], torch.where(MASK, 0.0, -2.0)[:, None, None]])
def test_it_is_one_softmax_over_all_keys(others: int, mask: Tensor | None) -> None:
    query, keys, values = draw(3, 2, 12, 8), draw(3, 2, 12, 8) * 2, draw(3, 2, 12, 8) + 1
    turned = draw(3, 2, 5, 8) * 3
    sources = [
        Source(turned, draw(3, 2, 9 + index, 8), draw(3, 2, 9 + index, 8) * 2, torch.tensor(log(0.3 + index)))
        for index in range(others)
    ]
    image = slice(4, 9)
    found = attend(query, keys, values, mask, sources, image)
    bias = (
        mask if mask is None or mask.dtype != torch.bool else torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    )
    own = [(keys, values, 1.0)]
    beside = [(each.keys, each.values, float(each.log_weight.exp())) for each in sources]
    torch.testing.assert_close(
        found[:, :, image],
        attend_plainly(query[:, :, image], turned, [*own, *beside], bias),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    alone = attend_plainly(query, query, own, bias)
    torch.testing.assert_close(found[:, :, :4], alone[:, :, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, :, 9:], alone[:, :, 9:], rtol=1e-4, atol=1e-5)


def test_balanced_sets_of_alike_keys_count_the_same() -> None:
    """Whatever their numbers: here 4 keys against 16."""
    query, zeros = draw(1, 1, 6, 8), torch.zeros(1, 1, 16, 8)
    weight = torch.tensor(balance(4, 16))
    source = Source(query, zeros, torch.ones(1, 1, 16, 8), weight)
    found = attend(query, zeros[:, :, :4], zeros[:, :, :4], None, [source], slice(0, 6))
    torch.testing.assert_close(found, torch.full_like(found, 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_near(dtype: torch.dtype) -> None:
    query, keys, values = (draw(2, 2, 12, 8) for _ in range(3))
    source = Source(query, keys + 1, values - 1, torch.tensor(-1.0))
    halves = Source(*(each.to(dtype) for each in (query, keys + 1, values - 1)), torch.tensor(-1.0))
    found = attend(*(each.to(dtype) for each in (query, keys, values)), None, [halves], slice(0, 12))
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), attend(query, keys, values, None, [source], slice(0, 12)), rtol=0.03, atol=0.03
    )
