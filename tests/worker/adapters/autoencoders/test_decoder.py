"""Every decoder that is written out as operations, against the autoencoder's own decode."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiny_autoencoders import tiny_dc, tiny_kl, tiny_kl_flux_2, tiny_kl_qwen_image, usual_scaling
from worker.adapters.autoencoders.decoder import SupportedAutoencoder, double, flatten_decoder
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.adapters.errors import UnknownFamilyError
from worker.engine.canvas import Plane
from worker.engine.plan import DecodePlan
from worker.engine.vae.decode import DecodedTile, decode
from worker.engine.vae.operations import Decoder

ONE_LEVEL = 1 / 127.5  # of 255, in the decoder's range [-1, 1]


def decode_kl(vae: SupportedAutoencoder, latent: Tensor) -> Tensor:
    return vae.decode(latent[None] / vae.config.scaling_factor + vae.config.shift_factor).sample[0]


def decode_flux_2(vae: SupportedAutoencoder, latent: Tensor) -> Tensor:
    """As at the end of diffusers' Flux2Pipeline."""
    from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline

    mean, variance = (each.view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
    plain = latent[None] * torch.sqrt(variance + vae.config.batch_norm_eps) + mean
    return vae.decode(Flux2Pipeline._unpatchify_latents(plain)).sample[0]


def decode_qwen_image(vae: SupportedAutoencoder, latent: Tensor) -> Tensor:
    mean, spread = (
        torch.tensor(levels)[:, None, None, None]
        for levels in (vae.config.latents_mean, vae.config.latents_std)
    )
    return vae.decode((latent[:, None] * spread + mean)[None]).sample[0, :, 0]


def decode_dc(vae: SupportedAutoencoder, latent: Tensor) -> Tensor:
    return vae.decode(latent[None] / vae.config.scaling_factor).sample[0]


Case = tuple[Callable[[int], SupportedAutoencoder], int, Callable[[SupportedAutoencoder, Tensor], Tensor]]
CASES: dict[str, Case] = {
    "kl": (tiny_kl, 4, decode_kl),
    "flux-2": (tiny_kl_flux_2, 4, decode_flux_2),
    "qwen-image": (tiny_kl_qwen_image, 4, decode_qwen_image),
    "dc": (tiny_dc, 16, decode_dc),
    "dc-interpolating": (tiny_dc, 8, decode_dc),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def latent_for(vae: SupportedAutoencoder, channels: int, height: int, width: int) -> Tensor:
    depth = channels * 4 if hasattr(vae, "bn") else channels
    return torch.randn(depth, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("memory_bytes", [1, 100_000, 1 << 30])
@torch.inference_mode()
def test_tiled_with_halo_equals_the_autoencoders_own_decode(case: Case, memory_bytes: int) -> None:
    build, channels, decode_whole = case
    vae = build(channels)
    latent = latent_for(vae, channels, 21, 26)
    whole = decode_whole(vae, latent)
    tiled = paint(latent, flatten_decoder(vae, usual_scaling(vae)), DecodePlan(6, "exact", memory_bytes))
    assert whole.std() > 10 * ONE_LEVEL
    assert (tiled - whole).abs().mean() < 0.001 * ONE_LEVEL
    assert (tiled - whole).abs().max() < 0.1 * ONE_LEVEL


@torch.inference_mode()
def test_a_wrapping_canvas_has_no_edge(case: Case) -> None:
    build, channels, _ = case
    vae = build(channels)
    latent, decoder = latent_for(vae, channels, 14, 18), flatten_decoder(vae, usual_scaling(vae))
    wrap, plan = (True, True), DecodePlan(5, "exact", 1)
    shift = (3 * decoder.scale, 7 * decoder.scale)
    rolled = paint(latent.roll((3, 7), (1, 2)), decoder, plan, wrap)
    expected = paint(latent, decoder, plan, wrap).roll(shift, (1, 2))
    torch.testing.assert_close(rolled, expected, rtol=0, atol=1e-4)


def test_an_unknown_autoencoder_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownFamilyError, match=r"autoencoder Linear; known: AutoencoderKL, .*AutoencoderDC"
    ):
        flatten_decoder(torch.nn.Linear(1, 1), LatentScaling())  # pyright: ignore[reportArgumentType]


def paint(
    latent: Tensor, decoder: Decoder, plan: DecodePlan, wrap: tuple[bool, bool] = (False, False)
) -> Tensor:
    image = torch.full((3, latent.shape[1] * decoder.scale, latent.shape[2] * decoder.scale), torch.nan)
    for event in decode(latent, decoder, Plane(*latent.shape[1:], wrap), plan):
        if isinstance(event, DecodedTile):
            event.place.slice(image).copy_(event.image)
    return image


def test_a_doubled_activation_is_its_nearest_neighbours() -> None:
    value = torch.randn(2, 6, 5, 3)
    doubled = double(value)
    assert torch.equal(doubled, F.interpolate(value, scale_factor=2.0, mode="nearest"))
    assert doubled.is_contiguous(memory_format=torch.channels_last)
