"""A picture of one tile that begins with another, against diffusers' own pipelines for that."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.flux.pipeline_flux_inpaint import FluxInpaintPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_img2img import QwenImageImg2ImgPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_inpaint import QwenImageInpaintPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import (
    StableDiffusion3Img2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_inpaint import (
    StableDiffusion3InpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.pipelines.z_image.pipeline_z_image_img2img import ZImageImg2ImgPipeline
from diffusers.pipelines.z_image.pipeline_z_image_inpaint import ZImageInpaintPipeline
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_transformers import (
    tiny_flux,
    tiny_flux_schnell,
    tiny_qwen_image,
    tiny_stable_diffusion_3,
    tiny_z_image,
)
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.generate import FinalState, PreparedModel, generate
from worker.engine.inpaint import Mask
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import GivenLatent, Picture

PROMPT, NEGATIVE, SEED = "a brick wall in the evening light", "moss", 9
# Ours runs min(int(steps * strength), steps) of the schedule's steps, as diffusers' pipelines with a UNet do; its others
# leave out int(steps - steps * strength), which is one step more or less where the product is not whole.
STEPS, STRENGTH = 4, 0.5


class Drawing(TorchFunctionMode):
    """Gives whoever asks for as many random numbers this noise: a pipeline that takes `latents` hides no picture in it."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self._noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn and prod(args[0]) == self._noise.numel():
            return self._noise.reshape(args[0])
        return func(*args, **(kwargs or {}))


class ZImageInpainting(ZImageInpaintPipeline):
    """It encodes what it does not look at then, and so takes pixels only."""

    def prepare_mask_latents(
        self, mask: Tensor, masked_image: Tensor, batch_size: int, height: int, width: int, *others: Any
    ) -> tuple[Tensor, Tensor]:
        unseen = torch.zeros(1, 3, height, width)
        return super().prepare_mask_latents(mask, unseen, batch_size, height, width, *others)


@dataclass(frozen=True, slots=True)
class Case:
    """One family, and diffusers' pipelines that begin with a picture.

    Args:
        noise: shape of a latent, (C, h, w), that one tile covers.
        told: how they are asked for what ours is asked for by `guidance_scale` and `negative_prompt`.
    """

    name: str
    build: Callable[[Path], DiffusionPipeline]
    image_to_image: type[DiffusionPipeline]
    inpaint: type[DiffusionPipeline]
    noise: tuple[int, int, int]
    told: dict[str, object]
    guidance_scale: float = 5.0
    negative_prompt: str = NEGATIVE


GUIDED = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}
CASES = (
    Case(
        "stable-diffusion", tiny_stable_diffusion,
        StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, (4, 16, 12), GUIDED,
    ),
    Case(
        "stable-diffusion-xl", tiny_stable_diffusion_xl,
        StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, (4, 16, 12), GUIDED,
    ),
    Case(
        "stable-diffusion-3", tiny_stable_diffusion_3,
        StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline, (16, 16, 12), GUIDED,
    ),
    Case(
        "flux-dev", tiny_flux, FluxImg2ImgPipeline, FluxInpaintPipeline, (4, 16, 12),
        {"guidance_scale": 3.5}, 3.5, "",
    ),
    Case(
        "flux-schnell", tiny_flux_schnell, FluxImg2ImgPipeline, FluxInpaintPipeline, (4, 16, 12),
        {"guidance_scale": 1.0, "max_sequence_length": 256}, 1.0, "",
    ),
    Case(
        "qwen-image", tiny_qwen_image, QwenImageImg2ImgPipeline, QwenImageInpaintPipeline, (4, 16, 12),
        {"true_cfg_scale": 5.0, "negative_prompt": NEGATIVE},
    ),
    Case(
        "z-image", tiny_z_image, ZImageImg2ImgPipeline, ZImageInpainting, (4, 16, 12),
        {"guidance_scale": 4.0, "negative_prompt": NEGATIVE},
    ),
)  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, DiffusionPipeline, PreparedModel]:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("models") / case.name
    pipe = case.build(folder)
    told = Conditions(PROMPT, case.negative_prompt, case.guidance_scale)
    return case, pipe, load_model(str(folder), "cpu").prepare(told)


def given(case: Case) -> Tensor:
    return torch.randn(case.noise, generator=torch.Generator().manual_seed(1))


def ask(kind: type[DiffusionPipeline], pipe: DiffusionPipeline, case: Case, **told: object) -> Tensor:
    """diffusers' own latent, (C, h, w)."""
    channels, height, width = case.noise
    theirs, image, scale = kind(**pipe.components), given(case)[None], pipe.vae_scale_factor
    with Drawing(initial_noise(SEED, *case.noise)):
        latents = theirs(
            prompt=PROMPT, image=image, height=height * scale, width=width * scale,
            strength=STRENGTH, num_inference_steps=STEPS, output_type="latent", **told, **case.told,
        ).images  # fmt: skip
    if latents.dim() == 3:
        latents = pipe._unpack_latents(latents, height * scale, width * scale, scale)
    return latents.reshape(channels, height, width)


def make(case: Case, prepared: PreparedModel, mask: Tensor | None = None) -> Tensor:
    channels, *size = case.noise
    canvas = Plane(*size)
    denoise = DenoisePlan(
        canvas,
        max(size),
        0,
        0,
        moving=False,
        seed=SEED,
        mask=None if mask is None else Mask.lay(mask, canvas),
    )
    skipped = STEPS - int(STEPS * STRENGTH)
    start = Picture(skipped, given=GivenLatent(lambda: given(case)))
    plan = GenerationPlan(SEED, channels, (StagePlan(denoise, STEPS - skipped, start),))
    (latent,) = (event.latent for event in generate(plan, prepared) if isinstance(event, FinalState))
    return latent


def test_one_tile_from_a_picture_equals_diffusers_own_image_to_image(
    loaded: tuple[Case, DiffusionPipeline, PreparedModel],
) -> None:
    case, pipe, prepared = loaded
    theirs = ask(case.image_to_image, pipe, case)
    assert (theirs - given(case)).abs().max() > 0.1
    torch.testing.assert_close(make(case, prepared), theirs, rtol=0, atol=1e-4)


def test_one_inpainted_tile_equals_diffusers_own_inpainting(
    loaded: tuple[Case, DiffusionPipeline, PreparedModel],
) -> None:
    case, pipe, prepared = loaded
    mask = torch.zeros(case.noise[1:])
    mask[3:11, 5:] = 1
    enlarged = mask.repeat_interleave(pipe.vae_scale_factor, 0).repeat_interleave(pipe.vae_scale_factor, 1)
    # What of the picture stays is only for models that see it; without it, it would be cut out of pixels.
    unseen = torch.zeros(1, 3, *enlarged.shape)
    theirs = ask(case.inpaint, pipe, case, mask_image=enlarged[None, None], masked_image_latents=unseen)
    ours = make(case, prepared, mask)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert torch.equal(ours[:, mask == 0], given(case)[:, mask == 0])
    assert (ours - given(case))[:, mask == 1].abs().max() > 0.1
