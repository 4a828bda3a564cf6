"""From a finished small canvas to the beginning of the next larger one."""

from collections.abc import Generator
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.decode import decode
from worker.engine.decoder import Decoder
from worker.engine.encode import SignOfLife, encode_in_steps
from worker.engine.encoder import Encoder
from worker.engine.grid import Tile
from worker.engine.plan import DecodePlan, DenoisePlan
from worker.engine.resample import enlarge
from worker.engine.stitch import Band, stitch
from worker.engine.sync import Group
from worker.engine.warned import Warned


class Painter(Protocol):
    """The two halves of an autoencoder. Without an encoder, latents themselves are enlarged."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def encoder(self) -> Encoder | None: ...

    @property
    def device(self) -> torch.device: ...


@torch.inference_mode()
def ascend(
    latent: Tensor, canvas: DenoisePlan, painter: Painter, plan: DecodePlan, group: Group
) -> Generator[Warned | SignOfLife, None, Tensor]:
    """Enlarge a clean latent (C, h, w) to the size of `canvas`: (C, H, W), float32.

    By way of pixels, where enlarging does no harm: the picture is decoded, enlarged by Lanczos'
    kernel and encoded again. Held whole is the small picture, as bytes; the large one only exists
    tile by tile. An enlarged latent decodes to a picture with halos, which the next stage has to mend.

    Raises:
        NonFiniteImageError: the picture could not be decoded or encoded.
    """
    if painter.encoder is None:
        return enlarge(latent, canvas.height, canvas.width, _all_of(canvas), canvas.wrap)
    scale = painter.decoder.scale
    image = yield from _decode_to_bytes(latent, canvas, painter, plan, group)

    def paint(part: Tile) -> Tensor:
        larger = enlarge(image, canvas.height * scale, canvas.width * scale, part, canvas.wrap)
        return larger.to(painter.device).div_(127.5).sub_(1).clamp_(-1, 1)

    latent = yield from encode_in_steps(
        paint, canvas.height, canvas.width, painter.encoder, canvas.wrap, plan, group
    )
    return latent


def _all_of(canvas: DenoisePlan) -> Tile:
    return Tile(0, 0, canvas.height, canvas.width)


def _decode_to_bytes(
    latent: Tensor, canvas: DenoisePlan, painter: Painter, plan: DecodePlan, group: Group
) -> Generator[Warned | SignOfLife, None, Tensor]:
    """RGB (3, h, w), uint8, on the painter's device."""
    scale = painter.decoder.scale
    height, width = latent.shape[-2] * scale, latent.shape[-1] * scale
    image = torch.empty(3, height, width, dtype=torch.uint8, device=painter.device)
    tiles = decode(latent, painter.decoder, canvas.wrap, plan, group)
    for event in stitch(tiles, width):
        if isinstance(event, Band):
            image[:, event.top : event.top + len(event.rows)] = event.rows.permute(2, 0, 1).to(image.device)
            yield SignOfLife()
        else:
            yield event
    return image
