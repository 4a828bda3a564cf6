"""From a picture, given or made by the stage before, to the start of a stage."""

from collections.abc import Generator
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.canvas import Paint, Plane, Rectangle
from worker.engine.inpaint import Inpainting, Mask
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.resample import enlarge
from worker.engine.start import Given, GivenLatent, GivenPixels, Picture
from worker.engine.stitch import Band, stitch
from worker.engine.vae.decode import decode
from worker.engine.vae.encode import encode_in_steps
from worker.engine.vae.executor import Heartbeat, MomentsPooled
from worker.engine.vae.operations import Decoder, Encoder
from worker.engine.warned import Warned


class Autoencoder(Protocol):
    """The two halves of an autoencoder. Without an encoder, latents themselves are enlarged."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def encoder(self) -> Encoder | None: ...

    @property
    def device(self) -> torch.device: ...


@torch.inference_mode()
def read_given(
    given: Given, autoencoder: Autoencoder, plan: DecodePlan, group: Group
) -> Generator[Heartbeat, None, Tensor]:
    """The clean latent (C, H, W), float32, of a given picture.

    Raises:
        NonFiniteImageError: it could not be encoded.
    """
    if isinstance(given, GivenLatent):
        return given.read().to(autoencoder.device)
    assert autoencoder.encoder is not None  # the model's card says whether it has one

    def paint(part: Rectangle) -> Tensor:
        return given.paint(part).to(autoencoder.device)

    return (yield from encode_in_steps(paint, autoencoder.encoder, given.canvas, plan, group))


@torch.inference_mode()
def show_mask(
    inpainting: Inpainting | None, stage: StagePlan, autoencoder: Autoencoder, plan: DecodePlan, group: Group
) -> Generator[Warned | Heartbeat, None, Tensor]:
    """What a model that sees masks is shown beside the canvas: what is made, and the latent of what stays, with grey
    elsewhere; (1 + C, H, W), as in diffusers' StableDiffusionInpaintPipeline.

    A resumed job makes it again: the encoder gives the same bytes.

    Args:
        inpainting: None: all is made.
    """
    canvas, start = stage.canvas, stage.start
    mask = inpainting.mask if inpainting else Mask.lay(torch.ones(canvas.size), canvas)
    if inpainting is None:
        paint = _paint_grey
    elif isinstance(start, Picture) and isinstance(start.given, GivenPixels) and start.given.canvas == canvas:
        paint = start.given.paint
    else:
        paint = yield from _paint_latent(inpainting.reference, canvas, autoencoder, plan, group)
    rest = GivenPixels(mask.blank(paint, autoencoder.decoder.scale), canvas)
    latent = yield from read_given(rest, autoencoder, plan, group)
    return torch.cat([mask.crossed[None].to(latent), latent])


def _paint_grey(part: Rectangle) -> Tensor:
    return torch.zeros(3, part.height, part.width)


@torch.inference_mode()
def augment(latent: Tensor, augmentation: float, seed: int, level: int) -> Tensor:
    """A clean latent (C, H, W) under a little noise, which hides what the next stage must not trust (conditioning
    augmentation: Ho et al., "Cascaded Diffusion Models", 2022, section 4).

    Args:
        augmentation: standard deviation of the noise.
        seed: so is `level`, of the stage that is to be denoised: two names of the noise.
    """
    # Stages' own noise is of planes from 0 on; the stage before must not be noised by what it was made of.
    noise = initial_noise(seed, *latent.shape, stage=-level)
    return latent + augmentation * noise.to(latent.device)


@torch.inference_mode()
def upscale_latent(
    latent: Tensor, canvas: Plane, autoencoder: Autoencoder, plan: DecodePlan, group: Group
) -> Generator[Warned | Heartbeat, None, Tensor]:
    """Enlarge a clean latent (C, h, w) to the size of `canvas`: (C, H, W), float32.

    By way of pixels, where enlarging does no harm: the picture is decoded, enlarged by Lanczos'
    kernel and encoded again. Held whole is the small picture, as bytes; the large one only exists
    tile by tile. An enlarged latent decodes to a picture with halos, which the next stage has to mend.

    Raises:
        NonFiniteImageError: the picture could not be decoded or encoded.
    """
    encoder = autoencoder.encoder
    if latent.shape[-2:] == canvas.size:
        return latent
    if encoder is None:
        return enlarge(latent, canvas, canvas.whole)
    paint = yield from _paint_latent(latent, canvas, autoencoder, plan, group)
    latent = yield from encode_in_steps(paint, encoder, canvas, plan, group)
    return latent


def _paint_latent(
    latent: Tensor, canvas: Plane, autoencoder: Autoencoder, plan: DecodePlan, group: Group
) -> Generator[Warned | Heartbeat, None, Paint]:
    """The picture of a clean latent (C, h, w), held as bytes, at the size of the picture of `canvas`.

    Raises:
        NonFiniteImageError: it could not be decoded.
    """
    picture, device = canvas.scaled(autoencoder.decoder.scale), autoencoder.device
    image = yield from _decode_to_bytes(latent, canvas, autoencoder, plan, group)
    return lambda part: enlarge(image, picture, part).to(device).div_(127.5).sub_(1).clamp_(-1, 1)


def _decode_to_bytes(
    latent: Tensor, canvas: Plane, autoencoder: Autoencoder, plan: DecodePlan, group: Group
) -> Generator[Warned | Heartbeat, None, Tensor]:
    """RGB (3, h, w), uint8, on the autoencoder's device."""
    decoder, device = autoencoder.decoder, autoencoder.device
    small = canvas.resized(*latent.shape[-2:])
    picture = small.scaled(decoder.scale)
    image = torch.empty(3, *picture.size, dtype=torch.uint8, device=device)
    tiles = decode(latent, decoder, small, plan, group)
    for event in stitch(tiles, picture.width):
        match event:
            case Band(top, rows):
                image[:, top : top + len(rows)] = rows.permute(2, 0, 1).to(device)
            case MomentsPooled():
                pass  # this picture is not kept
            case _:
                yield event
    return image
