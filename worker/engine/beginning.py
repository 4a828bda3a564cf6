"""What the first step of a stage is given, out of what the stage before has made and what stays of an earlier picture."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.guidance import LowBand
from worker.engine.inpaint import Inpainting
from worker.engine.plan import StagePlan
from worker.engine.start import Picture, Upscale


@dataclass(frozen=True, slots=True)
class Begun:
    """What the next step of a stage is given: the noisy canvas, and what the stage before has made, as it is used."""

    latent: Tensor
    low_band: LowBand | None = None
    enlarged: Tensor | None = None
    inpainting: Inpainting | None = None


def blend(kept: Tensor | None, reference: Tensor, stage: StagePlan) -> Tensor:
    """What a stage from a picture begins with, clean: what stays, and where it is made what the stage before has made.

    Args:
        kept: at the stage's own size, so is `reference`; (C, H, W) each.
    """
    mask = stage.denoise.mask
    if kept is None or stage.keeps_detail:
        return reference if kept is None else kept
    return reference if mask is None else torch.lerp(kept, reference, mask.weights.to(kept.device))


def begin_conditioned(
    reference: Tensor, enlarged: Tensor, kept: Tensor | None, latent: Tensor, noise: Tensor, stage: StagePlan
) -> Begun:
    """A canvas whose model sees a smaller picture.

    Args:
        reference: that picture, enlarged; `enlarged` is what the model sees of it.
    """
    mask, start = stage.denoise.mask, stage.start
    plan = start.low_band if isinstance(start, Upscale) else None
    low_band = plan and LowBand(plan, reference, stage.canvas)
    if mask is None or kept is None:
        return Begun(latent, low_band, enlarged)
    return Begun(latent, low_band, enlarged, Inpainting(mask.on(kept.device), kept, noise))


def begin_from_picture(
    reference: Tensor, kept: Tensor | None, latent: Tensor, noise: Tensor, stage: StagePlan, *, trained: bool
) -> Begun:
    """A canvas that is carried on by a picture.

    Args:
        kept: what stays, if that is another one.
        trained: as `Inpainting` has it.
    """
    mask, start = stage.denoise.mask and stage.denoise.mask.on(reference.device), stage.start
    low_band = start.low_band if isinstance(start, Picture) else None
    stays = reference if kept is None else kept
    return Begun(
        latent,
        low_band and LowBand(low_band, reference, stage.canvas, mask and mask.weights),
        inpainting=mask and Inpainting(mask, stays, noise, trained),
    )
