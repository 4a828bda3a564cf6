"""From a finished small canvas to the start of the next larger one."""

from collections.abc import Generator
from functools import lru_cache
from math import floor
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle
from worker.engine.plan import DecodePlan
from worker.engine.ranks import Group
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
    encoder, device = autoencoder.encoder, autoencoder.device
    if encoder is None:
        return enlarge(latent, canvas, canvas.whole)
    picture = canvas.scaled(autoencoder.decoder.scale)
    image = yield from _decode_to_bytes(latent, canvas, autoencoder, plan, group)

    def paint(part: Rectangle) -> Tensor:
        return enlarge(image, picture, part).to(device).div_(127.5).sub_(1).clamp_(-1, 1)

    latent = yield from encode_in_steps(paint, encoder, canvas, plan, group)
    return latent


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


_LOBES = 3


def enlarge(source: Tensor, canvas: Plane, part: Rectangle) -> Tensor:
    """A part of a picture (C, h, w) enlarged to the size of `canvas`, float32.

    Two small matrix products, whose weights depend on absolute places alone: PyTorch and Pillow can
    only enlarge a whole picture, or lay a part's own grid, and neither goes round a wrapping axis.

    Args:
        part: of the enlarged picture; on a wrapping axis it may lie over the edge.
    """
    small = canvas.resized(*source.shape[-2:])
    rows, down = _weigh(part.top, part.height, canvas.height, small, 0, source.device)
    columns, right = _weigh(part.left, part.width, canvas.width, small, 1, source.device)
    return down @ source[:, rows][:, :, columns].float() @ right.T


@lru_cache(maxsize=64)
def _weigh(
    start: int, extent: int, enlarged: int, small: Plane, axis: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which pixels of an axis count, and how much (extent, pixels) for each new one.

    Made on the CPU and kept on the device: all tiles of a row have the same.
    """
    steps = torch.arange(start, start + extent, dtype=torch.float64)
    centers = (steps + 0.5) * small.size[axis] / enlarged - 0.5
    first, last = floor(float(centers[0])) - _LOBES + 1, floor(float(centers[-1])) + _LOBES
    places = torch.arange(first, last + 1)
    distance = centers[:, None] - places[None, :]
    weights = torch.where(distance.abs() < _LOBES, distance.sinc() * (distance / _LOBES).sinc(), 0)
    shares = (weights / weights.sum(1, keepdim=True)).float()
    return small.fold(places, axis).to(device), shares.to(device)
