import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from tests.tiny_autoencoders import tiny_dc, tiny_kl, tiny_kl_flux_2, tiny_kl_qwen_image, usual_scaling
from tests.tiny_models import tiny_autoencoder, tiny_vae
from worker.adapters.autoencoders.encoder import flatten_encoder
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.canvas import Plane, Rectangle
from worker.engine.plan import DecodePlan
from worker.engine.vae.encode import encode
from worker.engine.vae.operations import shrink_of

KINDS = {
    "attention": lambda: tiny_vae(),
    "no attention": lambda: tiny_vae(attention=False),
    "shift": lambda: tiny_kl(4),
    "patches": lambda: tiny_kl_flux_2(4),
    "tiny": lambda: tiny_autoencoder(),
    "frames": lambda: tiny_kl_qwen_image(4),
    "attention before a stride": lambda: tiny_dc(16),
}


def scale_of(vae: nn.Module) -> int:
    encoder = flatten_encoder(vae, usual_scaling(vae))
    assert encoder is not None
    return shrink_of([*encoder.tiled, *encoder.whole])


@torch.inference_mode()
def whole(vae: nn.Module, image: Tensor) -> Tensor:
    """By diffusers' own encode, scaled as a pipeline would."""
    if isinstance(vae, AutoencoderTiny):
        return vae.encode(image[None]).latents[0] * vae.config.scaling_factor
    if isinstance(vae, AutoencoderDC):
        return vae.encode(image[None]).latent[0] * vae.config.scaling_factor
    if isinstance(vae, AutoencoderKLQwenImage):
        levels = (vae.config.latents_mean, vae.config.latents_std)
        center, spread = (torch.tensor(level)[:, None, None] for level in levels)
        return (vae.encode(image[None, :, None]).latent_dist.mode()[0, :, 0] - center) / spread
    mean = vae.encode(image[None]).latent_dist.mode()
    if hasattr(vae, "bn"):
        patches = torch.nn.functional.pixel_unshuffle(mean, 2)
        spread = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        return ((patches - vae.bn.running_mean[:, None, None]) / spread[:, None, None])[0]
    return ((mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor)[0]


def tiled(vae: nn.Module, image: Tensor, tile_size: int, wrap: tuple[bool, bool] = (False, False)) -> Tensor:
    def paint(part: Rectangle) -> Tensor:
        rows = torch.arange(part.top, part.top + part.height) % image.shape[1]
        columns = torch.arange(part.left, part.left + part.width) % image.shape[2]
        return image[:, rows][:, :, columns]

    encoder = flatten_encoder(vae, usual_scaling(vae))
    assert encoder is not None
    height, width = (side // scale_of(vae) for side in image.shape[1:])
    return encode(paint, encoder, Plane(height, width, wrap), DecodePlan(tile_size))


@pytest.mark.parametrize("tile_size", [3, 8, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_equal_diffusers_own_encode_of_the_whole(kind: str, tile_size: int) -> None:
    """Up to 16 tiles the statistics are the whole picture's."""
    vae = KINDS[kind]()
    torch.manual_seed(3)
    image = torch.rand(3, 9 * scale_of(vae), 12 * scale_of(vae)) * 2 - 1
    torch.testing.assert_close(tiled(vae, image, tile_size), whole(vae, image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["attention", "tiny", "frames", "attention before a stride"])
def test_a_wrapping_picture_has_no_edge(kind: str) -> None:
    """Turned by half, it is encoded to the same latent, turned by half."""
    vae = KINDS[kind]()
    torch.manual_seed(3)
    image = torch.rand(3, 12 * scale_of(vae), 12 * scale_of(vae)) * 2 - 1
    turned = image.roll((6 * scale_of(vae),) * 2, (1, 2))
    straight, other = (tiled(vae, each, 4, (True, True)) for each in (image, turned))
    torch.testing.assert_close(other.roll((-6, -6), (1, 2)), straight, rtol=0, atol=1e-4)


def test_a_sample_of_many_tiles_changes_all_of_them_alike() -> None:
    """100 tiles share statistics of 16: the error has no step where tiles meet."""
    vae = tiny_vae()
    torch.manual_seed(3)
    image = torch.rand(3, 40 * scale_of(vae), 40 * scale_of(vae)) * 2 - 1
    expected = whole(vae, image)
    error = tiled(vae, image, 4) - expected
    assert 0 < error.abs().mean() < 0.05 * expected.std()
    across = (error[:, :, 4::4] - error[:, :, 3:-1:4]).abs().mean()
    inside = (error[:, :, 2::4] - error[:, :, 1::4]).abs().mean()
    assert across < 1.2 * inside + 1e-6


def test_other_autoencoders_have_none() -> None:
    assert flatten_encoder(nn.Identity(), LatentScaling()) is None
