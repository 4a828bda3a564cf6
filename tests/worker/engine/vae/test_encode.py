"""Encoding where a half type is too narrow, on ranks, and stopped half way."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from tests.tiny_models import tiny_vae
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.autoencoders.encoder import flatten_encoder
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.canvas import Plane, Rectangle
from worker.engine.errors import NonFiniteImageError
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Alone, Group
from worker.engine.vae.encode import encode, encode_in_steps
from worker.engine.vae.operations import Encoder

SCALE, SIDE = 4, 8


def flatten(vae: AutoencoderKL) -> Encoder:
    encoder = flatten_encoder(vae, LatentScaling(0.18215))
    assert encoder is not None
    return encoder


def encode_image(
    image: Tensor, encoder: Encoder, group: Group | None = None, painted: Counter[Rectangle] | None = None
) -> Tensor:
    def paint(part: Rectangle) -> Tensor:
        if painted is not None:
            painted[part] += 1
        return part.slice(image)

    canvas = Plane(image.shape[1] // SCALE, image.shape[2] // SCALE)
    return encode(paint, encoder, canvas, DecodePlan(SIDE, memory_bytes=1), group)


@pytest.fixture
def overflowing() -> AutoencoderKL:
    """In float16 its first level overflows where the picture is glaring, and only there."""
    vae = tiny_vae(attention=False)
    vae.encoder.down_blocks[0].resnets[0].conv2.weight.data *= 16_000
    return vae


def glare(height: int, width: int) -> Tensor:
    """A picture for a latent of that size, glaring in the middle of the tile that is second from above, third from the left."""
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(3, height * SCALE, width * SCALE, generator=generator) * 0.4 - 0.2
    image[:, 46:50, 78:82] *= 400
    return image


def is_glaring(part: Rectangle) -> bool:
    """Whether it has a core of its own there, and not only its halo."""
    return part.top + part.height / 2 == 48 and part.left + part.width / 2 == 80


@pytest.mark.parametrize(("columns", "tiles_painted"), [(4, 12), (7, 11 + 21)])
def test_a_tile_that_overflows_is_encoded_in_float32_and_no_other(
    overflowing: AutoencoderKL, columns: int, tiles_painted: int
) -> None:
    """Of 3 x 4 tiles all are measured, of 3 x 7 every second one: not the broken one, the tenth."""
    image = glare(3 * SIDE, columns * SIDE)
    expected = encode_image(image, flatten(overflowing))
    painted = Counter[Rectangle]()
    latent = encode_image(image, flatten(overflowing.half()), painted=painted)
    assert painted.total() == tiles_painted + 1
    (broken,) = (times for part, times in painted.items() if is_glaring(part))
    assert broken == 2
    assert latent.isfinite().all()
    assert (latent - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_bytes_do_not_depend_on_how_tiles_are_shared_out(overflowing: AutoencoderKL, ranks: int) -> None:
    """2 x 3 tiles, one of them in float32: some of five ranks have nothing to do."""
    image = glare(2 * SIDE, 3 * SIDE)

    def encode_on(group: Group) -> Tensor:
        return encode_image(image, flatten(deepcopy(overflowing).half()), group)

    with ThreadPoolExecutor(ranks) as pool:
        latents = list(pool.map(encode_on, thread_groups(ranks)))
    assert all(torch.equal(encode_on(Alone()), latent) for latent in latents)


def test_what_is_not_finite_in_float32_is_refused() -> None:
    image = glare(2 * SIDE, 3 * SIDE)
    image[:, 10, 48] = torch.nan
    with pytest.raises(NonFiniteImageError, match="tile 2 of 6 is not finite"):
        encode_image(image, flatten(tiny_vae(attention=False)))


def test_it_may_be_stopped_between_tiles() -> None:
    image, painted = glare(2 * SIDE, 3 * SIDE), list[Rectangle]()

    def paint(part: Rectangle) -> Tensor:
        painted.append(part)
        return part.slice(image)

    steps = encode_in_steps(paint, flatten(tiny_vae()), Plane(2 * SIDE, 3 * SIDE), DecodePlan(SIDE))
    for begun in range(1, 4):
        next(steps)
        assert len(painted) == begun
    steps.close()
