"""Qwen-Image's autoencoder: one of videos, of which a picture is the first frame."""

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    AutoencoderKLQwenImage,
    QwenImageAttentionBlock,
    QwenImageCausalConv3d,
    QwenImageResample,
    QwenImageResidualBlock,
    QwenImageRMS_norm,
)
from torch import Tensor, nn

from worker.adapters.autoencoders.layers import (
    EncoderOperations,
    SizedOperations,
    attend,
    list_convolution,
    require,
    require_each,
    without_channels,
)
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.vae.operations import Attend, Fork, Join, Local, Shrink


def list_qwen_image(vae: AutoencoderKLQwenImage, scaling: LatentScaling) -> SizedOperations:
    """Operations of the decoder, all local but one attention: its norms are taken pixel by pixel."""
    decoder, config = vae.decoder, vae.config
    yield Local(lambda latent: scaling.undo(latent).to(vae.dtype)), config["z_dim"]
    yield _list_frame(vae.post_quant_conv)
    yield _list_frame(decoder.conv_in)
    yield from _list_middle(decoder.mid_block)
    for block in decoder.up_blocks:
        for resnet in require_each(QwenImageResidualBlock, block.resnets):
            yield from _list_resnet(resnet)
        for upsampler in require_each(QwenImageResample, block.upsamplers):
            # From the second frame on there are more frames; of a picture nothing is enlarged in time.
            layers = require(nn.Sequential, upsampler.resample)
            yield Local(layers, reach=1, scale=2), require(nn.Conv2d, layers[1]).out_channels
    yield _list_norm(decoder.norm_out)
    yield Local(decoder.nonlinearity), decoder.norm_out.gamma.shape[0]
    yield _list_frame(decoder.conv_out)
    yield Local(lambda image: image.clamp(-1.0, 1.0)), config["input_channels"]


def list_qwen_image_encoder(vae: AutoencoderKLQwenImage) -> EncoderOperations:
    """Operations of the encoder, to the mean of the latent."""
    encoder, channels = vae.encoder, vae.config["z_dim"]
    yield Local(lambda image: image.to(vae.dtype))
    yield _list_frame(encoder.conv_in)[0]
    for layer in encoder.down_blocks:
        match layer:
            case QwenImageResidualBlock():
                yield from without_channels(_list_resnet(layer))
            case QwenImageAttentionBlock():
                yield from without_channels(_list_attention(layer))
            case _:  # of one frame there are no fewer, as above
                yield Shrink(require(QwenImageResample, layer).resample)
    yield from without_channels(_list_middle(encoder.mid_block))
    yield _list_norm(encoder.norm_out)[0]
    yield Local(encoder.nonlinearity)
    yield from (_list_frame(layer)[0] for layer in (encoder.conv_out, vae.quant_conv))
    yield Local(lambda moments: moments[:, :channels])


def _list_middle(block: nn.Module) -> SizedOperations:
    first, *rest = require_each(QwenImageResidualBlock, block.resnets)
    yield from _list_resnet(first)
    attentions = require_each(QwenImageAttentionBlock, block.attentions)
    for attention, resnet in zip(attentions, rest, strict=True):
        yield from _list_attention(attention)
        yield from _list_resnet(resnet)


def _list_resnet(resnet: QwenImageResidualBlock) -> SizedOperations:
    shortcut = resnet.conv_shortcut
    local = _list_frame(shortcut)[0].apply if isinstance(shortcut, QwenImageCausalConv3d) else nn.Identity()
    yield Fork(local), max(resnet.in_dim, resnet.out_dim)
    for norm, convolution in ((resnet.norm1, resnet.conv1), (resnet.norm2, resnet.conv2)):
        yield _list_norm(norm)
        yield Local(resnet.nonlinearity), norm.gamma.shape[0]
        yield _list_frame(convolution)
    yield Join(), resnet.out_dim


def _list_attention(attention: QwenImageAttentionBlock) -> SizedOperations:
    yield Fork(nn.Identity()), attention.dim
    yield Local(attention.norm), attention.dim
    yield Attend(lambda source, context: _attend(attention, source, context)), attention.dim
    yield list_convolution(attention.proj)
    yield Join(), attention.dim


def _attend(attention: QwenImageAttentionBlock, source: Tensor, context: Tensor) -> Tensor:
    """Vaswani et al. 2017, eq. 1, with one head, over pixels."""
    of_source, of_context = (attention.to_qkv(each).flatten(2).transpose(1, 2) for each in (source, context))
    query, (_, key, value) = of_source.chunk(3, dim=-1)[0], of_context.chunk(3, dim=-1)
    mixed = attend(query[:, None], key[:, None], value[:, None])[:, 0]
    return torch.unflatten(mixed.transpose(1, 2), -1, source.shape[-2:])


def _list_frame(layer: QwenImageCausalConv3d) -> tuple[Local, int]:
    """The first frame sees nothing but zeros before itself: only the kernel's last moment counts."""
    reach = layer.kernel_size[-1] // 2
    local = Local(lambda value: F.conv2d(value, layer.weight[:, :, -1], layer.bias, padding=reach), reach)
    return local, layer.out_channels


def _list_norm(norm: QwenImageRMS_norm) -> tuple[Local, int]:
    return Local(lambda value: norm(value[:, :, None])[:, :, 0]), norm.gamma.shape[0]
