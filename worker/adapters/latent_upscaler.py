"""The network of a cascade's later stages, which sees the stage before: `latent_upscaler/` beside the pipeline's parts.

diffusers' own pipeline with such a network, StableDiffusionLatentUpscalePipeline, is for one purpose alone; so the
folder stays one of a StableDiffusionPipeline, which loads without it, and `chorale.json` says that it is there.
"""

from pathlib import Path
from typing import ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from api_schemas.model_files import UPSCALER
from worker.adapters.errors import ModelFolderError
from worker.adapters.loading import load_with_report
from worker.adapters.model_index import read_object
from worker.adapters.placement import choose_quantization
from worker.adapters.precision import choose_dtypes
from worker.adapters.settings import read_settings

_KIND = UNet2DConditionModel.__name__


class UpscalingPipeline(StableDiffusionPipeline):
    """A StableDiffusionPipeline with one part more, so that whatever is done to all parts is done to it."""

    model_cpu_offload_seq = f"text_encoder->image_encoder->unet->{UPSCALER}->vae"
    _optional_components: ClassVar[list[str]] = [*StableDiffusionPipeline._optional_components, UPSCALER]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        latent_upscaler: UNet2DConditionModel,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection,
        requires_safety_checker: bool = True,
    ) -> None:
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self.latent_upscaler = latent_upscaler
        self.register_modules(latent_upscaler=latent_upscaler)  # pyright: ignore[reportUnknownMemberType]  # untyped options


def has_upscaler(folder: Path) -> bool:
    """Whether `chorale.json` says so; the folder was checked to have one then."""
    cascade = read_settings(folder).cascade
    return cascade is not None and cascade.conditioned


def load_upscaler(folder: Path, device: torch.device) -> UNet2DConditionModel:
    """Load it as the folder's `chorale.json` asks; `load_pipeline` then checks and places it with the other parts.

    Raises:
        ModelFolderError: diffusers cannot load it, or it is another kind of network.
    """
    settings, part = read_settings(folder), folder / UPSCALER
    quantization, dtypes = choose_quantization(folder, settings), choose_dtypes(folder, settings, device)
    found = read_object(part / "config.json").get("_class_name")
    if found != _KIND:
        raise ModelFolderError(f"{part}/config.json: _class_name is {found!r}; allowed: {_KIND!r}")
    try:
        network, _ = load_with_report(
            UNet2DConditionModel, part, torch_dtype=dtypes["default"],
            quantization_config=quantization and (quantization.quant_mapping or {}).get(UPSCALER),
        )  # fmt: skip
    except Exception as error:  # whatever diffusers and safetensors make of a broken folder
        raise ModelFolderError(f"{part} cannot be loaded as a {_KIND}: {error}") from error
    return network
