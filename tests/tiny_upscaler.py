"""A tiny folder whose cascade's later stages have a network of their own."""

import json
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from tests.tiny_models import SCHEDULE, tiny_stable_diffusion

CASCADE = {"steps": [3, 2], "conditioned": True, "enlarges": 4, "augmentation": 0.1}


def tiny_upscaling_model(folder: Path, **settings: object) -> Path:
    """A StableDiffusionPipeline's folder with `latent_upscaler/` and DDIM from the last timestep on.

    Args:
        settings: of `chorale.json` beside the cascade's.
    """
    pipe = tiny_stable_diffusion(folder)
    pipe.scheduler = DDIMScheduler(
        **SCHEDULE, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False,
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    torch.manual_seed(3)
    UNet2DConditionModel(**{**plain_config(pipe.unet), "in_channels": 8}).save_pretrained(
        folder / "latent_upscaler"
    )
    (folder / "chorale.json").write_text(json.dumps({"cascade": CASCADE, **settings}))
    return folder


def plain_config(network: UNet2DConditionModel) -> dict[str, object]:
    """The arguments that it was made with."""
    return {name: value for name, value in network.config.items() if not name.startswith("_")}
