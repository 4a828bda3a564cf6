import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from worker.adapters.graphs import replay_forward


def build() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )


def ask(unet: UNet2DConditionModel, batch: int, timestep: float = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    latent, states = (torch.randn(batch, *shape, generator=generator) for shape in ((4, 16, 16), (5, 32)))
    clock = torch.tensor(timestep)
    return unet(latent, clock, encoder_hidden_states=states, added_cond_kwargs={}, return_dict=False)[0]


class Recorded:
    """What a GPU does: the very tensors of the recording are read, and its output is written over."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.count += 1
        output = call()
        return lambda: output[0].copy_(call()[0]), output


@torch.inference_mode()
def test_what_is_played_back_is_what_would_have_been_said() -> None:
    plain, replayed, record = build(), build(), Recorded()
    replay_forward(replayed, record)
    asked = [(2, 7.0), (2, 500.0), (3, 7.0), (2, 9.0)]
    answers = [ask(replayed, *each) for each in asked]
    assert record.count == 2
    for each, answer in zip(asked, answers, strict=True):
        torch.testing.assert_close(answer, ask(plain, *each), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_every_small_batch_is_recorded_and_no_large_one() -> None:
    """Of the small ones launches take the most; a worker's 32 sizes, from the largest on, left no place for them."""
    unet, record = build(), Recorded()
    replay_forward(unet, record)
    for batch in range(10, 0, -1):
        ask(unet, batch)
    assert record.count == 8


@torch.inference_mode()
def test_what_cannot_be_recorded_is_said_once_and_computed(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, other = build(), build()
    replay_forward(other, refuse)
    with caplog.at_level(logging.WARNING):
        for batch in (2, 3):
            assert torch.equal(ask(other, batch), ask(plain, batch))
    assert [record.message.count("not permitted") for record in caplog.records] == [1]


@torch.inference_mode()
def test_want_of_memory_is_for_others_to_make_good() -> None:
    def run_out(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        raise torch.OutOfMemoryError("out of memory")

    unet = build()
    replay_forward(unet, run_out)
    with pytest.raises(torch.OutOfMemoryError):
        ask(unet, 2)


@torch.inference_mode()
def test_nothing_is_recorded_on_a_cpu() -> None:
    plain, other = build(), build()
    replay_forward(other)
    assert torch.equal(ask(other, 2), ask(plain, 2))
