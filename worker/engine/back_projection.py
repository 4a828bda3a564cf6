"""A conditioned stage's picture, held to the smaller one that it was made from."""

from collections.abc import Generator

import torch
from torch import Tensor

from worker.engine.canvas import Plane
from worker.engine.plan import DecodePlan, GenerationPlan
from worker.engine.ranks import Group
from worker.engine.resample import BICUBIC, LANCZOS
from worker.engine.start import GivenLatent, GivenPixels, Upscale
from worker.engine.stitch import decode_part
from worker.engine.upscale import Autoencoder, augment, hold_reduced, read_enlarged
from worker.engine.vae.encode import encode_in_steps
from worker.engine.vae.executor import Heartbeat
from worker.engine.warned import Warned

Waiting = Generator[Warned | Heartbeat, None, Tensor]


def hold_to_smaller(
    latent: Tensor,
    enlarged: Tensor | None,
    plan: GenerationPlan,
    level: int,
    autoencoder: Autoencoder,
    group: Group,
) -> Waiting:
    """The clean latent (C, H, W) of a stage, projected back as far as `Upscale.held` says, if nothing of another picture stays.

    Args:
        enlarged: what the stage's model has seen, (C, H, W).
        level: of the stage, counted from 1.
    """
    stage = plan.stages[level - 1]
    start, made_freely = stage.start, stage.kept is None and stage.denoise.mask is None
    if enlarged is None or not isinstance(start, Upscale) or not start.held or not made_freely:
        return latent
    small = _find_smaller(plan, level, autoencoder.decoder.scale)
    if autoencoder.encoder is None or small.size == stage.canvas.scaled(autoencoder.decoder.scale).size:
        return latent
    # A resumed job knows the latent of the smaller picture only under its noise.
    clean = augment(enlarged, -start.augmentation, plan.seed, level)
    missing = yield from _find_missing(
        latent, clean, small, start, stage.canvas, autoencoder, plan.decode, group
    )
    return (latent + start.held * missing).contiguous()


def _find_smaller(plan: GenerationPlan, level: int, scale: int) -> Plane:
    """The smaller picture's pixels."""
    stage = plan.stages[level - 1]
    match stage.start:
        case Upscale(given=GivenPixels(canvas=canvas, smaller=smaller)):
            return smaller or canvas.scaled(scale)
        case Upscale(given=GivenLatent(read)):
            return stage.canvas.resized(*read().shape[-2:]).scaled(scale)
        case Upscale(reduced=(height, width)):
            return stage.canvas.resized(height, width).scaled(scale)
        case _:
            return plan.stages[level - 2].canvas.scaled(scale)


@torch.inference_mode()
def _find_missing(
    latent: Tensor,
    enlarged: Tensor,
    small: Plane,
    start: Upscale,
    canvas: Plane,
    autoencoder: Autoencoder,
    plan: DecodePlan,
    group: Group,
) -> Waiting:
    """What a smaller picture has, enlarged and encoded, and the reduced copy of this one, treated alike, has not.

    Iterative back-projection (Irani & Peleg, "Improving Resolution by Image Registration", 1991), one iteration of it,
    in latents: what is finer than the smaller picture's pixels stays. Held whole is the reduced copy.

    Raises:
        NonFiniteImageError: the picture could not be decoded or encoded.
    """
    encoder, picture = autoencoder.encoder, canvas.scaled(autoencoder.decoder.scale)
    assert encoder is not None
    tiles = decode_part(latent, autoencoder.decoder, canvas, plan, group)
    reduced = yield from hold_reduced(tiles, picture, small, autoencoder.device)
    kernel = BICUBIC if isinstance(start.given, GivenPixels) else LANCZOS
    paint = read_enlarged(reduced, picture, autoencoder.device, kernel)
    found = yield from encode_in_steps(paint, encoder, canvas, plan, group)
    return enlarged - found
