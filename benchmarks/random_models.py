"""Models of true size with random weights, created on the device: speed and memory do not depend on the weights.

Text encoders are left out; text states are random numbers of the true shapes.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from api_schemas.folder_settings import FolderSettings
from worker.adapters.extras.control_net import ControlNets
from worker.adapters.extras.flux_control_net import FluxControlNets
from worker.adapters.extras.ip_adapter import IpAdapters
from worker.adapters.families.flux import Flux
from worker.adapters.families.stable_diffusion_xl import StableDiffusionXL
from worker.adapters.family_model import FamilyModel

SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 1024,
}
TINY_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 64),
    "attention_head_dim": (1, 1, 2),
    "transformer_layers_per_block": (1, 1, 1),
}
TINY_VAE = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
TINY_FLUX = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}


class WordlessXLPipeline(StableDiffusionXLPipeline):
    """Any prompt is the same random states."""

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *prompts: object, do_classifier_free_guidance: bool, **options: object
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        states, pooled = (_draw(shape, self.unet.dtype, self.device) for shape in ((1, 77, 2048), (1, 1280)))
        guided = do_classifier_free_guidance
        return states, states if guided else None, pooled, pooled if guided else None


class WordlessFluxPipeline(FluxPipeline):
    """Any prompt is the same random states."""

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *prompts: object, **options: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.transformer.dtype
        states, pooled = (_draw(shape, dtype, self.device) for shape in ((1, 512, 4096), (1, 768)))
        return states, pooled, torch.zeros(512, 3, device=self.device)


# Options come from dictionaries, and pipelines are annotated as if text encoders could not be left out.
_build_unet = cast(Callable[..., UNet2DConditionModel], UNet2DConditionModel)
_build_vae = cast(Callable[..., AutoencoderKL], AutoencoderKL)
_build_transformer = cast(Callable[..., FluxTransformer2DModel], FluxTransformer2DModel)
_build_xl_pipeline = cast(Callable[..., WordlessXLPipeline], WordlessXLPipeline)
_build_flux_pipeline = cast(Callable[..., WordlessFluxPipeline], WordlessFluxPipeline)


def build_sdxl(device: torch.device, *, tiny: bool) -> WordlessXLPipeline:
    """2.6 billion weights of UNet, 84 million of VAE."""
    with _born_on(device):
        unet = _build_unet(**SDXL_UNET | (TINY_UNET if tiny else {}))
        vae = _build_vae(**VAE | (TINY_VAE if tiny else {}), latent_channels=4, scaling_factor=0.13025)
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return _build_xl_pipeline(
        vae=vae, unet=unet, scheduler=scheduler, force_zeros_for_empty_prompt=False, add_watermarker=False,
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
    )  # fmt: skip


def build_flux(device: torch.device, *, tiny: bool) -> WordlessFluxPipeline:
    """12 billion weights of transformer, 84 million of VAE."""
    with _born_on(device):
        transformer = _build_transformer(guidance_embeds=True, **(TINY_FLUX if tiny else {}))
        vae = _build_vae(
            **VAE | (TINY_VAE if tiny else {}), latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
            use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    pipe = _build_flux_pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae, transformer=transformer,
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.default_sample_size = 16 if tiny else 128
    return pipe


def wrap_sdxl(pipe: StableDiffusionXLPipeline, asked: FolderSettings | None = None) -> FamilyModel:
    settings = (asked or FolderSettings()).model_copy(
        update={"default_guidance_scale": 5.0, "default_steps": 30}
    )
    return FamilyModel(StableDiffusionXL(pipe, ControlNets(pipe), IpAdapters(pipe)), settings, "sdxl-size")


def wrap_flux(pipe: FluxPipeline, settings: FolderSettings | None = None) -> FamilyModel:
    return FamilyModel(Flux(pipe, FluxControlNets(pipe)), settings or FolderSettings(), "flux-size")


def _draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@contextmanager
def _born_on(device: torch.device) -> Generator[None]:
    """Weights are drawn on the device itself, in the type that it computes in."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
