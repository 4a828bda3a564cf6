"""From a picture, given or made by the stage before, to the start of a stage."""

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.canvas import Paint, Plane, Rectangle
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Group
from worker.engine.resample import LANCZOS, Kernel, enlarge
from worker.engine.start import Given, GivenLatent
from worker.engine.stitch import Band, decode_part, stitch
from worker.engine.vae.decode import Decoding
from worker.engine.vae.encode import encode_in_steps
from worker.engine.vae.executor import Heartbeat, MomentsPooled
from worker.engine.vae.operations import Decoder, Encoder
from worker.engine.warned import Warned

_PIECE = 512  # columns


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
    latent: Tensor,
    canvas: Plane,
    autoencoder: Autoencoder,
    plan: DecodePlan,
    group: Group,
    reduced: tuple[int, int] | None = None,
) -> Generator[Warned | Heartbeat, None, Tensor]:
    """Enlarge a clean latent (C, h, w) to the size of `canvas`: (C, H, W), float32.

    By way of pixels, where enlarging does no harm: the picture is decoded, enlarged by Lanczos'
    kernel and encoded again. Held whole is the small picture, as bytes; the large one only exists
    tile by tile. An enlarged latent decodes to a picture with halos, which the next stage has to mend.

    Args:
        reduced: as `Upscale` has it.

    Raises:
        NonFiniteImageError: the picture could not be decoded or encoded.
    """
    encoder = autoencoder.encoder
    if latent.shape[-2:] == canvas.size:
        return latent
    if encoder is None:
        return enlarge(latent, canvas, canvas.whole)
    paint = yield from paint_latent(latent, canvas, autoencoder, plan, group, reduced=reduced)
    latent = yield from encode_in_steps(paint, encoder, canvas, plan, group)
    return latent


def paint_latent(
    latent: Tensor,
    canvas: Plane,
    autoencoder: Autoencoder,
    plan: DecodePlan,
    group: Group,
    *,
    moments: Sequence[Tensor] | None = None,
    part: Rectangle | None = None,
    reduced: tuple[int, int] | None = None,
) -> Generator[Warned | Heartbeat, None, Paint]:
    """The picture of a clean latent (C, h, w), held as bytes, at the size of the picture of `canvas`.

    Args:
        moments: so is `part`, as `decode_part` takes them, for a latent of the canvas' size.
        reduced: (h, w) in latent pixels, what the picture is reduced to at first; None: it is not.

    Raises:
        NonFiniteImageError: it could not be decoded.
    """
    decoder, device = autoencoder.decoder, autoencoder.device
    small, picture = canvas.resized(*latent.shape[-2:]), canvas.scaled(decoder.scale)
    tiles = decode_part(latent, decoder, small, plan, group, moments=moments, part=part)
    decoded = small.scaled(decoder.scale)
    if reduced is None:
        image = yield from _hold_bytes(tiles, decoded, device)
    else:
        image = yield from hold_reduced(tiles, decoded, small.resized(*reduced).scaled(decoder.scale), device)
    return read_enlarged(image, picture, device)


def read_enlarged(image: Tensor, picture: Plane, device: torch.device, kernel: Kernel = LANCZOS) -> Paint:
    """RGB (3, h, w) of 0 to 255, at the size of `picture`."""
    return lambda part: enlarge(image, picture, part, kernel).to(device).div_(127.5).sub_(1).clamp_(-1, 1)


def _hold_bytes(
    tiles: Iterator[Decoding], picture: Plane, device: torch.device
) -> Generator[Warned | Heartbeat, None, Tensor]:
    """RGB (3, h, w), uint8, on the autoencoder's device."""
    image = torch.empty(3, *picture.size, dtype=torch.uint8, device=device)
    for event in stitch(tiles, picture.width):
        match event:
            case Band(top, rows):
                image[:, top : top + len(rows)] = rows.permute(2, 0, 1).to(device)
            case MomentsPooled():
                pass  # this picture is not kept
            case _:
                yield event
    return image


def hold_reduced(
    tiles: Iterator[Decoding], picture: Plane, small: Plane, device: torch.device
) -> Generator[Warned | Heartbeat, None, Tensor]:
    """The mean of what each pixel of the smaller picture covers, (3, h, w), 0 to 255."""
    reduced = torch.zeros(3, *small.size, device=device)
    for event in stitch(tiles, picture.width):
        match event:
            case Band(top, rows):
                pixels = rows.to(device).permute(2, 0, 1).float()
                first, shares = _share(top, len(rows), small.height / picture.height)
                reduced[:, first : first + len(shares)] += _narrow(shares.to(device) @ pixels, small.width)
            case MomentsPooled():
                pass  # this picture is not kept
            case _:
                yield event
    return reduced


def _narrow(rows: Tensor, width: int) -> Tensor:
    """(…, W) to (…, width), piece by piece: most of a matrix of all shares would be zeros."""
    narrow = rows.new_zeros(*rows.shape[:-1], width)
    for left in range(0, rows.shape[-1], _PIECE):
        piece = rows[..., left : left + _PIECE]
        first, shares = _share(left, piece.shape[-1], width / rows.shape[-1])
        narrow[..., first : first + len(shares)] += piece @ shares.to(rows.device).T
    return narrow


def _share(start: int, extent: int, scale: float) -> tuple[int, Tensor]:
    """The first row of the smaller picture that rows from `start` on lie in, and how much of it and of the next ones each is,
    (rows, extent); so it is of columns."""
    edges = torch.arange(start, start + extent + 1, dtype=torch.float64) * scale
    first, last = int(edges[0]), int((edges[-1] - 1e-6).ceil())
    places = torch.arange(first, last)[:, None]
    shares = torch.minimum(edges[1:], places + 1) - torch.maximum(edges[:-1], places)
    return first, shares.clamp(min=0).float()
