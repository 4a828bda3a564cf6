"""Sana's autoencoder, the deep compression autoencoder (Chen et al. 2024)."""

import torch
from diffusers.models.attention_processor import (
    SanaMultiscaleAttentionProjection,
    SanaMultiscaleLinearAttention,
)
from diffusers.models.autoencoders.autoencoder_dc import (
    AutoencoderDC,
    DCDownBlock2d,
    DCUpBlock2d,
    Decoder,
    EfficientViTBlock,
    Encoder,
    ResBlock,
)
from torch import Tensor, nn

from worker.adapters.autoencoders.layers import (
    EncoderOperations,
    SizedOperations,
    list_convolution,
    require,
    require_each,
    without_channels,
)
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.vae.operations import Attend, Fork, Join, Local, Shrink


def list_dc(vae: AutoencoderDC, scaling: LatentScaling) -> SizedOperations:
    """Operations of the decoder: all local but linear attention, since norms are taken pixel by pixel."""
    decoder = vae.decoder
    yield Local(lambda latent: scaling.undo(latent).to(vae.dtype)), vae.config["latent_channels"]
    yield Local(lambda latent: _enter_decoder(decoder, latent), reach=1), decoder.conv_in.out_channels
    for level in reversed(decoder.up_blocks):
        for block in require_each(nn.Module, level):
            yield from _list_block(block)
    yield Local(lambda value: decoder.conv_act(_norm(decoder.norm_out, value))), decoder.norm_out.dim[0]
    if isinstance(decoder.conv_out, DCUpBlock2d):
        yield from _list_block(decoder.conv_out)
    else:
        yield list_convolution(require(nn.Conv2d, decoder.conv_out))


def list_dc_encoder(vae: AutoencoderDC) -> EncoderOperations:
    encoder = vae.encoder
    yield Local(lambda image: image.to(vae.dtype))
    if isinstance(encoder.conv_in, DCDownBlock2d):
        yield Shrink(encoder.conv_in)
    else:
        yield list_convolution(require(nn.Conv2d, encoder.conv_in))[0]
    for level in encoder.down_blocks:
        for block in require_each(nn.Module, level):
            if isinstance(block, DCDownBlock2d):
                yield Shrink(block)
            else:
                yield from without_channels(_list_block(block))
    yield Local(lambda value: _leave_encoder(encoder, value), reach=1)


def _leave_encoder(encoder: Encoder, value: Tensor) -> Tensor:
    latent: Tensor = encoder.conv_out(value)
    if encoder.out_shortcut:
        latent = latent + torch.unflatten(value, 1, (-1, encoder.out_shortcut_average_group_size)).mean(dim=2)
    return latent


def _enter_decoder(decoder: Decoder, latent: Tensor) -> Tensor:
    value: Tensor = decoder.conv_in(latent)
    if decoder.in_shortcut:
        value = value + latent.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
    return value


def _list_block(block: nn.Module) -> SizedOperations:
    match block:
        case DCUpBlock2d(interpolate=after):
            # Reach counts pixels of the output: one of the input's is two of those.
            channels = block.conv.out_channels // (1 if after else block.factor**2)
            yield Local(block, reach=1 if after else 2, scale=2), channels
        case EfficientViTBlock():
            yield from _list_attention(block.attn)
            yield Local(block.conv_out, reach=1), block.attn.to_out.out_features
        case _:
            yield Local(block, reach=2), require(ResBlock, block).conv2.out_channels


def _list_attention(attention: SanaMultiscaleLinearAttention) -> SizedOperations:
    width = attention.to_out.out_features
    projections = require_each(SanaMultiscaleAttentionProjection, attention.to_qkv_multiscale)
    scales = 1 + len(projections)
    reach = max((each.proj_in.kernel_size[0] // 2 for each in projections), default=0)
    yield Fork(nn.Identity()), width
    yield Local(lambda value: _project(attention, value), reach), 3 * scales * attention.to_q.out_features
    yield (
        Attend(lambda source, context: _attend(attention, source, context), quadratic=False),
        attention.to_out.in_features,
    )
    yield Local(lambda value: _project_out(attention, value)), width
    yield Join(), width


def _project(attention: SanaMultiscaleLinearAttention, value: Tensor) -> Tensor:
    """Queries, keys and values at every scale, (1, 3 * scales * width, h, w)."""
    pixels = value.movedim(1, -1)
    parts = [layer(pixels) for layer in (attention.to_q, attention.to_k, attention.to_v)]
    plain = torch.cat(parts, dim=-1).movedim(-1, 1)
    return torch.cat([plain, *(each(plain) for each in attention.to_qkv_multiscale)], dim=1)


def _attend(attention: SanaMultiscaleLinearAttention, source: Tensor, context: Tensor) -> Tensor:
    """Linear attention: keys times values are summed over the canvas first (Cai et al. 2023, eq. 3)."""
    size = attention.attention_head_dim
    query = _heads(source, size)[:, :, :size].relu()
    key, value = _heads(context, size)[:, :, size:].chunk(2, dim=2)
    mixed = attention.apply_linear_attention(query, key.relu(), value).to(source.dtype)
    return torch.unflatten(mixed.flatten(1, 2), -1, source.shape[-2:])


def _heads(value: Tensor, size: int) -> Tensor:
    """(1, C, h, w) -> (1, heads, 3 * size, h * w), in float32 as diffusers does it."""
    return torch.unflatten(value.float().flatten(2), 1, (-1, 3 * size))


def _project_out(attention: SanaMultiscaleLinearAttention, value: Tensor) -> Tensor:
    mixed: Tensor = attention.to_out(value.movedim(1, -1)).movedim(-1, 1)
    norm = require(nn.Module, attention.norm_out)
    return _norm(norm, mixed) if attention.norm_type == "rms_norm" else norm(mixed)


def _norm(norm: nn.Module, value: Tensor) -> Tensor:
    return norm(value.movedim(1, -1)).movedim(-1, 1)
