"""Tiny random autoencoders of true architecture."""

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import nn

from worker.adapters.autoencoders.scaling import LatentScaling, read_scaling


def usual_scaling(vae: nn.Module) -> LatentScaling:
    """Of the pipeline that an autoencoder of this class is made for; FLUX.1's where it has a shift."""
    if isinstance(vae, AutoencoderKL | AutoencoderTiny):
        return read_scaling(StableDiffusionPipeline if vae.config.shift_factor is None else FluxPipeline, vae)
    kinds = {
        AutoencoderDC: SanaPipeline,
        AutoencoderKLFlux2: Flux2Pipeline,
        AutoencoderKLQwenImage: QwenImagePipeline,
    }
    return read_scaling(kinds[type(vae)], vae)


def tiny_kl(channels: int) -> AutoencoderKL:
    """Latents with a shift, no convolution before the decoder, as in SD3, FLUX.1 and Z-Image."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.36,
        shift_factor=0.11,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def tiny_kl_flux_2(channels: int) -> AutoencoderKLFlux2:
    torch.manual_seed(2)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=channels,
        norm_num_groups=4,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def tiny_kl_qwen_image(channels: int) -> AutoencoderKLQwenImage:
    torch.manual_seed(3)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=torch.linspace(-0.7, 0.7, channels).tolist(),
        latents_std=torch.linspace(0.8, 2.4, channels).tolist(),
    ).eval()
    _disturb(vae)
    return vae


def tiny_dc(channels: int) -> AutoencoderDC:
    """Residual blocks, linear attention with and without a second scale, both ways of enlarging."""
    torch.manual_seed(4)
    vae = AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (5,), ()),
        decoder_qkv_multiscales=((), (), (5,)),
        decoder_norm_types=("rms_norm", "rms_norm", "rms_norm"),
        upsample_block_type="interpolate" if channels % 16 else "pixel_shuffle",
        scaling_factor=0.41,
    ).eval()
    _disturb(vae)
    return vae


def _disturb(vae: nn.Module) -> None:
    """Norms begin as ones and zeros, which would hide one that is left out."""
    for name, parameter in vae.named_parameters():
        if "norm" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
