"""A conditioned stage's picture, held to the smaller one that it was made from."""

from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.canvas import Plane
from worker.engine.plan import DecodePlan, GenerationPlan
from worker.engine.ranks import Group
from worker.engine.start import Upscale
from worker.engine.stitch import decode_part
from worker.engine.upscale import Autoencoder, augment, hold_bytes, read_enlarged
from worker.engine.vae.encode import encode_in_steps
from worker.engine.vae.executor import Heartbeat
from worker.engine.warned import Warned

Waiting = Generator[Warned | Heartbeat, None, Tensor]


def hold_to_lead(
    latent: Tensor,
    enlarged: Tensor | None,
    plan: GenerationPlan,
    level: int,
    autoencoder: Autoencoder,
    group: Group,
) -> Waiting:
    """The clean latent (C, H, W) of a stage, projected back if it was made from a smaller one before it, and that alone.

    Args:
        enlarged: what the stage's model has seen, (C, H, W).
        level: of the stage, counted from 1.
    """
    stage = plan.stages[level - 1]
    start, made_freely = stage.start, stage.kept is None and stage.denoise.mask is None
    if enlarged is None or not isinstance(start, Upscale) or start.given is not None or not made_freely:
        return latent
    before = plan.stages[level - 2].canvas
    if autoencoder.encoder is None or before.size == stage.canvas.size:
        return latent
    # A resumed job knows the latent of the smaller picture only under its noise.
    clean = augment(enlarged, -start.augmentation, plan.seed, level)
    small = before.scaled(autoencoder.decoder.scale)
    return (yield from _project_back(latent, clean, small, stage.canvas, autoencoder, plan.decode, group))


@torch.inference_mode()
def _project_back(
    latent: Tensor,
    enlarged: Tensor,
    small: Plane,
    canvas: Plane,
    autoencoder: Autoencoder,
    plan: DecodePlan,
    group: Group,
) -> Waiting:
    """Add what a smaller picture has, enlarged and encoded, and the reduced copy of this one, treated alike, has not.

    Iterative back-projection (Irani & Peleg, "Improving Resolution by Image Registration", 1991), one iteration of it,
    in latents: what is finer than the smaller picture's pixels stays. The picture is held whole, as bytes.

    Raises:
        NonFiniteImageError: the picture could not be decoded or encoded.
    """
    encoder, picture = autoencoder.encoder, canvas.scaled(autoencoder.decoder.scale)
    assert encoder is not None
    image = yield from hold_bytes(
        decode_part(latent, autoencoder.decoder, canvas, plan, group), picture, autoencoder.device
    )
    # Channel by channel: a large picture as floats takes four times its bytes.
    reduced = torch.stack([F.adaptive_avg_pool2d(channel[None].float(), small.size)[0] for channel in image])
    del image
    paint = read_enlarged(reduced, picture, autoencoder.device)
    found = yield from encode_in_steps(paint, encoder, canvas, plan, group)
    return (latent + (enlarged - found)).contiguous()
