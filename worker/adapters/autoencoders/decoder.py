"""diffusers' decoders, written out as the engine's list of operations."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import get_args

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from worker.adapters.autoencoders.dc import list_dc
from worker.adapters.autoencoders.layers import (
    SizedOperations,
    attend,
    list_convolution,
    require,
    require_each,
)
from worker.adapters.autoencoders.qwen_image import list_qwen_image
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.adapters.errors import UnknownFamilyError
from worker.engine.vae.operations import Attend, Decoder, Fork, Join, Local, Normalize

# Input pixels beyond its own that an enlarged pixel is mixed from.
_INTERPOLATION_REACH = {"bilinear": 1, "bicubic": 2}

SupportedAutoencoder = (
    AutoencoderKL | AutoencoderKLFlux2 | AutoencoderKLQwenImage | AutoencoderDC | AutoencoderTiny
)


def flatten_decoder(vae: SupportedAutoencoder, scaling: LatentScaling) -> Decoder:
    """List the operations from a canvas to its picture, taking back how the latent was scaled.

    Raises:
        UnknownFamilyError: the autoencoder is of another class.
    """
    match vae:
        case AutoencoderKL():
            listed = list(_list_kl(vae, scaling))
        case AutoencoderKLFlux2():
            listed = list(_list_flux_2(vae, scaling))
        case AutoencoderKLQwenImage():
            listed = list(list_qwen_image(vae, scaling))
        case AutoencoderDC():
            listed = list(list_dc(vae, scaling))
        case AutoencoderTiny():
            listed = list(_list_tiny(vae, scaling))
        case _:
            known = ", ".join(kind.__name__ for kind in get_args(SupportedAutoencoder))
            raise UnknownFamilyError(f"autoencoder {type(vae).__name__}; known: {known}")
    operations, channels = zip(*listed, strict=True)
    return Decoder(operations, channels, vae.dtype, lambda: widened(vae))


@contextmanager
def widened(vae: SupportedAutoencoder) -> Generator[None]:
    """Compute in float32 for a while; narrowing again gives back the very same weights."""
    dtype = vae.dtype
    nn.Module.to(vae, torch.float32)  # diffusers' own would warn
    try:
        yield
    finally:
        nn.Module.to(vae, dtype)


def _list_kl(vae: AutoencoderKL, scaling: LatentScaling) -> SizedOperations:
    yield Local(lambda latent: scaling.undo(latent).to(vae.dtype)), vae.config["latent_channels"]
    yield from _list_from_plain_latent(vae)


def _list_flux_2(vae: AutoencoderKLFlux2, scaling: LatentScaling) -> SizedOperations:
    """Its canvas holds patches of 2 x 2, row by row, each of their channels normalised on its own."""
    yield (
        Local(lambda latent: F.pixel_shuffle(scaling.undo(latent), 2).to(vae.dtype), scale=2),
        vae.config["latent_channels"],
    )
    yield from _list_from_plain_latent(vae)


def _list_from_plain_latent(vae: AutoencoderKL | AutoencoderKLFlux2) -> SizedOperations:
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        yield list_convolution(vae.post_quant_conv)
    yield list_convolution(decoder.conv_in)
    yield from list_middle(decoder.mid_block)
    for block in decoder.up_blocks:
        yield from list_level(block)
        for upsampler in require_each(Upsample2D, block.upsamplers):
            yield Local(partial(_upsample, upsampler), reach=1, scale=2), upsampler.out_channels
    norm = require(nn.GroupNorm, decoder.conv_norm_out)
    yield Normalize(norm), norm.num_channels
    yield Local(decoder.conv_act), norm.num_channels
    yield list_convolution(decoder.conv_out)


def _upsample(upsampler: Upsample2D, value: Tensor) -> Tensor:
    """As it does itself, to the bit."""
    return require(nn.Conv2d, upsampler.conv)(double(value)) if value.is_cuda else upsampler(value)


def double(value: Tensor) -> Tensor:
    """(B, C, h, w) with each pixel as a square of four, channels last: PyTorch's own kernel takes a GPU twice as long."""
    pixels = value.permute(0, 2, 3, 1)
    batch, height, width, channels = pixels.shape
    spread = pixels[:, :, None, :, None].expand(batch, height, 2, width, 2, channels)
    return spread.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def list_level(block: nn.Module) -> SizedOperations:
    """Residual blocks of a level, each followed by its attention where the level has any."""
    attentions = require_each(Attention, getattr(block, "attentions", None))
    for resnet, attention in zip_longest(require_each(ResnetBlock2D, block.resnets), attentions):
        yield from list_resnet(resnet)
        if attention is not None:
            yield from _list_attention(attention)


def list_middle(block: nn.Module) -> SizedOperations:
    first, *rest = require_each(ResnetBlock2D, block.resnets)
    yield from list_resnet(first)
    for attention, resnet in zip_longest(require_each(Attention, block.attentions), rest):
        if attention is not None:
            yield from _list_attention(attention)
        yield from list_resnet(resnet)


def list_resnet(resnet: ResnetBlock2D) -> SizedOperations:
    width = resnet.out_channels
    yield Fork(resnet.conv_shortcut or nn.Identity()), max(width, resnet.in_channels)
    yield Normalize(resnet.norm1), resnet.in_channels
    yield Local(lambda value: resnet.conv1(_activate(resnet, value)), reach=1), width
    yield Normalize(resnet.norm2), width
    yield Local(lambda value: resnet.conv2(_activate(resnet, value)), reach=1), width
    yield Join(resnet.output_scale_factor), width


def _activate(resnet: ResnetBlock2D, value: Tensor) -> Tensor:
    """In place where that is possible: nobody else has what a normalisation gave."""
    if isinstance(resnet.nonlinearity, nn.SiLU):
        return F.silu(value, inplace=True)
    return require(nn.Module, resnet.nonlinearity)(value)


def _list_attention(attention: Attention) -> SizedOperations:
    width = attention.to_q.in_features
    yield Fork(nn.Identity()), width
    if attention.group_norm is not None:
        yield Normalize(attention.group_norm), width
    yield Attend(lambda source, context: _attend(attention, source, context)), width
    yield Join(attention.rescale_output_factor), width


def _attend(attention: Attention, source: Tensor, context: Tensor) -> Tensor:
    """Vaswani et al. 2017, eq. 1, over pixels: queries of (1, C, h, w), keys and values of (1, C, h', w')."""
    queries, keys = (value.flatten(2).transpose(1, 2) for value in (source, context))
    projections = (attention.to_q, queries), (attention.to_k, keys), (attention.to_v, keys)
    heads = [
        require(nn.Linear, projection)(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for projection, tokens in projections
    ]
    mixed = attend(*heads).transpose(1, 2).flatten(2)
    return require(nn.ModuleList, attention.to_out)[0](mixed).transpose(1, 2).unflatten(-1, source.shape[-2:])


def _list_tiny(vae: AutoencoderTiny, scaling: LatentScaling) -> SizedOperations:
    """No statistics anywhere: every layer is local."""
    channels: int = vae.config["latent_channels"]
    yield Local(lambda latent: torch.tanh(scaling.undo(latent.to(vae.dtype)) / 3) * 3), channels
    for layer in vae.decoder.layers:
        convolutions = [part for part in layer.modules() if isinstance(part, nn.Conv2d)]
        channels = convolutions[-1].out_channels if convolutions else channels
        reach = sum(part.kernel_size[0] // 2 for part in convolutions)
        scale = 1
        if isinstance(layer, nn.Upsample):
            scale = vae.config["upsampling_scaling_factor"]
            reach = scale * _INTERPOLATION_REACH.get(layer.mode, 0)
        yield Local(layer, reach, scale), channels
    yield Local(lambda image: image * 2 - 1), 3
