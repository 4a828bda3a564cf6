"""A conditioned stage's picture, held to the smaller one that it was made from."""

from collections.abc import Generator, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.canvas import Plane
from worker.engine.plan import DecodePlan, GenerationPlan
from worker.engine.ranks import Group
from worker.engine.resample import BICUBIC, LANCZOS
from worker.engine.start import GivenLatent, GivenPixels, Upscale
from worker.engine.stitch import Band, decode_part, stitch
from worker.engine.upscale import Autoencoder, augment, read_enlarged
from worker.engine.vae.decode import Decoding
from worker.engine.vae.encode import encode_in_steps
from worker.engine.vae.executor import Heartbeat, MomentsPooled
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
    reduced = yield from _reduce(tiles, picture, small, autoencoder.device)
    kernel = BICUBIC if isinstance(start.given, GivenPixels) else LANCZOS
    paint = read_enlarged(reduced, picture, autoencoder.device, kernel)
    found = yield from encode_in_steps(paint, encoder, canvas, plan, group)
    return enlarged - found


def _reduce(tiles: Iterator[Decoding], picture: Plane, small: Plane, device: torch.device) -> Waiting:
    """The mean of what each pixel of the smaller picture covers, (3, h, w), 0 to 255."""
    reduced = torch.zeros(3, *small.size, device=device)
    for event in stitch(tiles, picture.width):
        match event:
            case Band(top, rows):
                pixels = rows.to(device).permute(2, 0, 1).float()
                narrow = F.adaptive_avg_pool2d(pixels, (len(rows), small.width))
                first, shares = _share_rows(top, len(rows), small.height / picture.height)
                reduced[:, first : first + len(shares)] += shares.to(device) @ narrow
            case MomentsPooled():
                pass  # this picture is not kept
            case _:
                yield event
    return reduced


def _share_rows(top: int, extent: int, scale: float) -> tuple[int, Tensor]:
    """The first row of the smaller picture that rows from `top` on lie in, and how much of it and those below each is, (rows, extent)."""
    edges = torch.arange(top, top + extent + 1, dtype=torch.float64) * scale
    first, last = int(edges[0]), int((edges[-1] - 1e-6).ceil())
    places = torch.arange(first, last)[:, None]
    shares = torch.minimum(edges[1:], places + 1) - torch.maximum(edges[:-1], places)
    return first, shares.clamp(min=0).float()
