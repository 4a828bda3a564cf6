"""What a model that was trained to inpaint sees of a large canvas, by an autoencoder without statistics: there a part is what
the whole has there."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_autoencoder
from worker.adapters.autoencoders.decoder import flatten_decoder
from worker.adapters.autoencoders.encoder import flatten_encoder
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.canvas import Plane, Rectangle
from worker.engine.inpaint import Inpainting, Mask
from worker.engine.plan import DecodePlan, DenoisePlan, StagePlan
from worker.engine.ranks import SingleRank
from worker.engine.show_mask import show_mask
from worker.engine.start import Given, GivenLatent, GivenPixels, Picture
from worker.engine.vae.decode import DecodedTile, decode
from worker.engine.vae.encode import encode
from worker.engine.vae.executor import Heartbeat
from worker.engine.vae.operations import Decoder, Encoder

SCALE, CANVAS, DECODE = 8, Plane(72, 88, (False, True)), DecodePlan(24)
LATENT = torch.randn(4, *CANVAS.size, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Autoencoder:
    decoder: Decoder
    encoder: Encoder
    device: torch.device


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    vae = tiny_autoencoder()
    encoder = flatten_encoder(vae, LatentScaling())
    assert encoder is not None
    return Autoencoder(flatten_decoder(vae, LatentScaling()), encoder, torch.device("cpu"))


@pytest.fixture(scope="module")
def image(autoencoder: Autoencoder) -> Tensor:
    """What the latent decodes to, in levels of 255."""
    picture = torch.empty(3, CANVAS.height * SCALE, CANVAS.width * SCALE)
    for tile in decode(LATENT, autoencoder.decoder, CANVAS, DECODE):
        if isinstance(tile, DecodedTile):
            tile.place.slice(picture).copy_(tile.image)
    return picture.mul(127.5).add(127.5).round().clamp(0, 255).div(127.5).sub(1)


def plan(given: Given, made: Rectangle) -> tuple[Inpainting, StagePlan]:
    weights = torch.zeros(CANVAS.size)
    made.slice(weights).fill_(1)
    mask = Mask.lay(weights, CANVAS)
    denoise = DenoisePlan(CANVAS, 8, 0, 2, moving=True, seed=3, mask=mask)
    return Inpainting(mask, LATENT, torch.zeros_like(LATENT), True), StagePlan(
        denoise, 4, Picture(0, given=given)
    )


def show(autoencoder: Autoencoder, given: Given, made: Rectangle) -> tuple[Tensor, int]:
    """What is shown, and how many tiles were encoded and decoded for it."""
    steps, tiles = show_mask(*plan(given, made), autoencoder, DECODE, SingleRank(), ()), 0
    while True:
        try:
            tiles += isinstance(next(steps), Heartbeat)
        except StopIteration as end:
            return end.value, tiles


def tiles_of(stage: StagePlan) -> Iterator[Rectangle]:
    for index in range(stage.steps):
        yield from stage.denoise.tiles_at(index, stage.steps)


@pytest.mark.parametrize(
    "made", [Rectangle(30, 40, 4, 6), Rectangle(0, 2, 5, 3)], ids=["middle", "over the edge"]
)
def test_tiles_see_what_they_would_if_all_were_encoded(
    made: Rectangle, autoencoder: Autoencoder, image: Tensor
) -> None:
    pixels = CANVAS.scaled(SCALE)
    given = GivenPixels(lambda part: pixels.gather(image, part), CANVAS)
    shown, encoded = show(autoencoder, given, made)
    kept, both = show(autoencoder, GivenLatent(lambda: LATENT), made)
    inpainting, stage = plan(given, made)
    blank = inpainting.mask.blank(given.paint, SCALE)
    whole = encode(blank, autoencoder.encoder, CANVAS, DECODE)
    assert torch.equal(shown[0], inpainting.mask.weights)
    for tile in tiles_of(stage):
        for part, wanted in ((shown[1:], whole), (kept, shown)):
            torch.testing.assert_close(
                CANVAS.gather(part, tile), CANVAS.gather(wanted, tile), rtol=0, atol=1e-4
            )
    assert torch.equal(shown[1:, 64:], LATENT[:, 64:])  # nothing of it is made
    assert encoded == 4  # of 12, to encode as to decode
    assert both <= 4 + 9
