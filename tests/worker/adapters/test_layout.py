from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.family import FamilyModel
from worker.adapters.layout import put_channels_last, put_parts_channels_last
from worker.adapters.settings import FolderSettings
from worker.adapters.stable_diffusion import load


def test_the_layout_changes_nothing_of_what_is_said() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        use_linear_projection=True,
    )
    inputs = torch.randn(2, 4, 16, 16), torch.tensor(7), torch.randn(2, 5, 32)
    with torch.inference_mode():
        before = unet(*inputs).sample
        put_channels_last(unet)
        after = unet(*inputs).sample
    assert after.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_denoiser_and_autoencoder_are_laid_out_and_what_thinks_in_films_is_not(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion(tmp_path / "tiny")
    put_parts_channels_last(pipe, denoiser=True)
    for kernel in (pipe.unet.conv_in.weight, pipe.vae.decoder.conv_in.weight):
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert not kernel.is_contiguous()
    film = nn.Module()
    film.weight = nn.Parameter(torch.zeros(2, 2, 1, 3, 3))
    film.plane = nn.Parameter(torch.zeros(2, 2, 3, 3))
    pipe.register_modules(vae=film)
    put_parts_channels_last(pipe, denoiser=True)
    assert film.plane.is_contiguous()


def test_on_a_cpu_the_decoder_alone_is_laid_out(tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    family = load(tmp_path / "tiny", torch.device("cpu"))
    FamilyModel(family, FolderSettings(), "tiny")
    assert all(each.is_contiguous() for each in family.pipe.unet.parameters())
    assert not family.pipe.vae.decoder.conv_in.weight.is_contiguous()
