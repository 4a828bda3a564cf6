import pytest
import torch
import torch.nn.functional as F

from worker.adapters.autoencoders.layers import attend_in_blocks


@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_attention_in_blocks_is_attention(loud: float) -> None:
    """Also where keys have much in common, so that all scores are far from zero."""
    torch.manual_seed(0)
    queries, keys, values = torch.randn(300, 64), torch.randn(500, 64) + loud, torch.randn(500, 64)
    whole = F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
    blocks = attend_in_blocks(queries, keys, values, rows=128, columns=200)
    torch.testing.assert_close(blocks, whole, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_it_errs_by_little_more_than_the_type() -> None:
    torch.manual_seed(0)
    queries, keys, values = (
        2 * torch.randn(length, 512, dtype=torch.bfloat16) for length in (256, 9000, 9000)
    )
    exact = F.scaled_dot_product_attention(*(each[None].float() for each in (queries, keys, values)))[0]
    blocks = attend_in_blocks(queries, keys, values)
    assert (blocks - exact).abs().mean() < 2**-7 * exact.abs().mean()
