"""Every family with a tiny folder, and how its own diffusers pipeline is asked for a latent or a picture."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from tests.tiny_models import tiny_autoencoder, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_transformers import tiny_flux
from tests.worker.adapters.families.transformers import CASES as TRANSFORMERS
from tests.worker.adapters.families.transformers import NEGATIVE, PROMPT, STEPS, FamilyCase, ask_flux
from worker.adapters.families import flux, stable_diffusion, stable_diffusion_xl

SEED = 9


def ask_unet_plainly(
    pipe: DiffusionPipeline, noise: Tensor, scale: float, output: str, steps: int = STEPS
) -> Tensor:
    return ask_unet(pipe, noise, scale, output, steps, None)


def ask_unet(
    pipe: DiffusionPipeline,
    noise: Tensor,
    scale: float,
    output: str,
    steps: int = STEPS,
    negative_prompt: str | None = NEGATIVE,
) -> Tensor:
    height_px, width_px = (side * pipe.vae_scale_factor for side in noise.shape[1:])
    images = pipe(
        PROMPT, negative_prompt=negative_prompt, latents=noise[None], num_inference_steps=steps,
        guidance_scale=scale, height=height_px, width=width_px, output_type=output,
        generator=torch.Generator().manual_seed(SEED),
    ).images  # fmt: skip
    return torch.as_tensor(images[0])


def _with_tiny_autoencoder(build: Callable[[Path], DiffusionPipeline]) -> Callable[[Path], DiffusionPipeline]:
    def build_with(folder: Path) -> DiffusionPipeline:
        pipe = build(folder)
        pipe.register_modules(vae=tiny_autoencoder())
        pipe.save_pretrained(folder)
        return pipe

    return build_with


UNETS = (
    FamilyCase("stable-diffusion", stable_diffusion.load, tiny_stable_diffusion, (4, 16, 12), ask_unet),
    FamilyCase(
        "stable-diffusion-xl", stable_diffusion_xl.load, tiny_stable_diffusion_xl, (4, 16, 12), ask_unet
    ),
    FamilyCase(
        "stable-diffusion-xl-plain",
        stable_diffusion_xl.load,
        tiny_stable_diffusion_xl,
        (4, 16, 12),
        ask_unet_plainly,
        negative_prompt="",
    ),
)
TINY_AUTOENCODERS = (
    FamilyCase(
        "stable-diffusion-tiny", stable_diffusion.load, _with_tiny_autoencoder(tiny_stable_diffusion),
        (4, 16, 12), ask_unet,
    ),
    FamilyCase(
        "flux-dev-tiny", flux.load, _with_tiny_autoencoder(tiny_flux), (4, 16, 12), ask_flux, (3.5,), "",
    ),
)  # fmt: skip
CASES = {case.name: case for case in (*UNETS, *TINY_AUTOENCODERS, *TRANSFORMERS)}


def build(case: FamilyCase, folder: Path) -> Path:
    """Save its tiny pipeline, with a size and a map for previews that need not be found out each time."""
    case.build(folder)
    settings = {
        "native_size_px": 64,
        "default_steps": 10,  # as many the scheduler is tried with, in place of 50
        "latent_rgb": {"weight": [[0.0] * case.noise[0]] * 3, "bias": [0.5] * 3},
    }
    (folder / "chorale.json").write_text(json.dumps(settings))
    return folder


def load_theirs(folder: Path, parts: Mapping[str, object] = MappingProxyType({})) -> DiffusionPipeline:
    """Without what judges or marks finished pictures; `parts` that are loaded already are taken as they are."""
    parts = dict(parts)
    if "safety_checker" in (folder / "model_index.json").read_text():
        parts |= {"safety_checker": None}
    if "StableDiffusionXL" in (folder / "model_index.json").read_text():
        parts |= {"add_watermarker": False}
    pipe = DiffusionPipeline.from_pretrained(
        str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
