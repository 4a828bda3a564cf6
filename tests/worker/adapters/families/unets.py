"""The UNet families: how each is built, tiny, and how its own diffusers pipeline is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl

PROMPT, STEPS, SEED = "brick wall", 4, 9
NOISE = (4, 16, 16)  # of a native tile


@dataclass(frozen=True, slots=True)
class UNetCase:
    """One kind of folder.

    Args:
        build: saves a tiny pipeline to a folder.
        asked: (negative prompt, guidance scale); the last is with guidance, if there is any.
    """

    name: str
    build: Callable[[Path], DiffusionPipeline]
    asked: tuple[tuple[str, float], ...] = (("", 1.0), ("", 5.0), ("moss", 5.0))


CASES = (
    UNetCase("stable-diffusion", tiny_stable_diffusion),
    UNetCase(
        "stable-diffusion-2.1", lambda folder: tiny_stable_diffusion(folder, predicts="v_prediction")
    ),
    UNetCase("stable-diffusion-xl", tiny_stable_diffusion_xl),
    UNetCase(
        "stable-diffusion-xl-turbo", lambda folder: tiny_stable_diffusion_xl(folder, few_steps=True),
        asked=(("", 1.0),),
    ),
    UNetCase(
        "stable-diffusion-xl-lcm", lambda folder: tiny_stable_diffusion_xl(folder, consistency=True),
        asked=(("", 1.0), ("", 8.5)),
    ),
)  # fmt: skip
ADD_ON_CASES = (CASES[0], CASES[2])


def ask(
    pipe: DiffusionPipeline,
    noise: Tensor,
    asked: tuple[str, float],
    output: str = "latent",
    steps: int = STEPS,
    **told: object,
) -> Tensor:
    """diffusers' own latent (C, h, w), or its picture (H, W, 3) in [0, 1], as its output type says."""
    negative_prompt, scale = asked
    images = pipe(
        PROMPT, negative_prompt=negative_prompt or None, latents=noise[None], num_inference_steps=steps,
        guidance_scale=scale, output_type=output, generator=torch.Generator().manual_seed(SEED), **told,
    ).images  # fmt: skip
    return torch.as_tensor(images[0])
