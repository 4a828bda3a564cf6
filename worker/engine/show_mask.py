"""What a model that was trained to inpaint sees beside the canvas."""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from worker.engine.canvas import Paint, Plane, Rectangle
from worker.engine.inpaint import Inpainting, Mask
from worker.engine.plan import DecodePlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.start import GivenPixels, Picture
from worker.engine.upscale import Autoencoder, paint_latent, read_given
from worker.engine.vae.encode import reach_of
from worker.engine.vae.executor import Heartbeat
from worker.engine.warned import Warned

Encoding = Generator[Warned | Heartbeat, None, Tensor]


@torch.inference_mode()
def show_mask(
    inpainting: Inpainting | None,
    stage: StagePlan,
    autoencoder: Autoencoder,
    plan: DecodePlan,
    group: Group,
    moments: Sequence[Tensor] | None = None,
) -> Encoding:
    """What is made, and the latent of what stays, with grey elsewhere; (1 + C, H, W), as in diffusers'
    StableDiffusionInpaintPipeline.

    Encoded is the part that tiles can lie on, as a picture of its own: its group normalisations see that part, as those
    of the model's training saw a masked picture of one tile. Beyond it, where at most the conductor and neighbourhoods
    look, the latent of the whole picture is shown. A resumed job makes it again: the encoder gives the same bytes.

    Args:
        inpainting: None: all is made.
        moments: that what stays was decoded by, where it is the latent of an earlier picture.
    """
    canvas = stage.canvas
    if inpainting is None:
        made = torch.ones(1, *canvas.size)
        grey = yield from read_given(GivenPixels(_paint_grey, canvas), autoencoder, plan, group)
        return torch.cat([made.to(grey), grey])
    mask = inpainting.mask
    part, plane = _find_part(mask, stage, autoencoder)
    paint = yield from _paint_kept(inpainting, stage, autoencoder, plan, group, moments, part)
    shown = _cut(mask.blank(paint, autoencoder.decoder.scale), part, autoencoder.decoder.scale)
    encoded = yield from read_given(GivenPixels(shown, plane), autoencoder, plan, group)
    latent = inpainting.reference.clone()
    for outer, inner in canvas.pieces(part):
        outer.slice(latent).copy_(inner.slice(encoded))
    return torch.cat([mask.crossed[None].to(latent), latent])


def _find_part(mask: Mask, stage: StagePlan, autoencoder: Autoencoder) -> tuple[Rectangle, Plane]:
    """What tiles that touch the mask can lie on, and the encoder's reach around it; and that as a canvas of its own."""
    assert autoencoder.encoder is not None  # a model that sees masks has one
    canvas, reach = stage.canvas, max(stage.denoise.tile_shape) - 1 + reach_of(autoencoder.encoder)
    around, _ = canvas.halo(mask.bounds, reach)
    whole = around.height >= canvas.height, around.width >= canvas.width
    part = Rectangle(
        0 if whole[0] else around.top,
        0 if whole[1] else around.left,
        min(around.height, canvas.height),
        min(around.width, canvas.width),
    )
    wrap = canvas.wrap[0] and whole[0], canvas.wrap[1] and whole[1]
    return part, Plane(part.height, part.width, wrap)


def _paint_kept(
    inpainting: Inpainting,
    stage: StagePlan,
    autoencoder: Autoencoder,
    plan: DecodePlan,
    group: Group,
    moments: Sequence[Tensor] | None,
    part: Rectangle,
) -> Generator[Warned | Heartbeat, None, Paint]:
    """What stays, in pixels: as it was given, else decoded where it is wanted."""
    given = stage.kept or (stage.start.given if isinstance(stage.start, Picture) else None)
    if isinstance(given, GivenPixels) and given.canvas == stage.canvas:
        return given.paint
    reference = inpainting.reference
    return (
        yield from paint_latent(reference, stage.canvas, autoencoder, plan, group, moments=moments, part=part)
    )


def _cut(paint: Paint, part: Rectangle, scale: int) -> Paint:
    """The same picture, counted from the corner of a part."""
    corner = part.scaled(scale)

    def paint_part(own: Rectangle) -> Tensor:
        return paint(Rectangle(own.top + corner.top, own.left + corner.left, own.height, own.width))

    return paint_part


def _paint_grey(part: Rectangle) -> Tensor:
    return torch.zeros(3, part.height, part.width)
