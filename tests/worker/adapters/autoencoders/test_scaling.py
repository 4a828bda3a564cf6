from collections.abc import Callable

import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin

from tests.tiny_autoencoders import tiny_dc, tiny_kl, tiny_kl_flux_2, tiny_kl_qwen_image, usual_scaling
from tests.tiny_models import tiny_autoencoder, tiny_vae
from worker.adapters.autoencoders.scaling import LatentScaling


@pytest.mark.parametrize(
    "build",
    [
        tiny_vae,
        tiny_autoencoder,
        lambda: tiny_kl(4),
        lambda: tiny_dc(8),
        lambda: tiny_kl_flux_2(4),
        lambda: tiny_kl_qwen_image(4),
    ],
)
def test_what_is_applied_can_be_undone(build: Callable[[], ModelMixin]) -> None:
    scaling, canvas = usual_scaling(build()), torch.randn(16, 5, 7)
    canvas = canvas if isinstance(scaling.spread, float) else canvas[: len(scaling.spread)]
    torch.testing.assert_close(scaling.apply(scaling.undo(canvas)), canvas, rtol=0, atol=1e-5)


def test_levels_of_each_channel_go_with_the_common_factor() -> None:
    """As in diffusers' StableDiffusionXLPipeline, for Playground 2.5: latents * std / factor + mean."""
    spread, shift = torch.tensor([5.0, 7.0])[:, None, None], torch.tensor([0.5, -1.0])[:, None, None]
    own = LatentScaling(0.5, spread, shift).undo(torch.ones(2, 1, 1))
    assert own.flatten().tolist() == [10.5, 13.0]
