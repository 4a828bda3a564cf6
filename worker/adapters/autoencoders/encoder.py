"""diffusers' encoders, written out as the engine's list of operations."""

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.downsampling import Downsample2D
from torch import nn

from worker.adapters.autoencoders.dc import list_dc_encoder
from worker.adapters.autoencoders.decoder import list_level, list_middle, widened
from worker.adapters.autoencoders.layers import (
    EncoderOperations,
    list_convolution,
    require,
    require_each,
    without_channels,
)
from worker.adapters.autoencoders.qwen_image import list_qwen_image_encoder
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.vae.operations import Attend, Encoder, Fork, Local, Normalize, Operation, Shrink


def flatten_encoder(vae: object, scaling: LatentScaling) -> Encoder | None:
    """List the operations from a picture to its latent's mean, scaled as the canvas holds it.

    Returns:
        None for an autoencoder of another class: latents of such a model are enlarged themselves.
    """
    match vae:
        case AutoencoderKL():
            operations = [*_list_to_mean(vae), Local(scaling.apply)]
        case AutoencoderKLFlux2():
            operations = [*_list_to_mean(vae), _lay_patches(scaling)]
        case AutoencoderKLQwenImage():
            operations = [*list_qwen_image_encoder(vae), Local(scaling.apply)]
        case AutoencoderDC():
            operations = [*list_dc_encoder(vae), Local(scaling.apply)]
        case AutoencoderTiny():
            operations = [*_list_tiny(vae), Local(scaling.apply)]
        case _:
            return None
    split = _find_split(operations)
    return Encoder(operations[:split], operations[split:], vae.dtype, lambda: widened(vae))


def _find_split(operations: Sequence[Operation | Shrink]) -> int:
    """Behind the last stride of the network, or where an earlier attention begins: it needs the whole canvas."""
    strides = [index for index, each in enumerate(operations[:-1]) if isinstance(each, Shrink)]
    behind = strides[-1] + 1 if strides else 0
    first = next((index for index, each in enumerate(operations) if isinstance(each, Attend)), behind)
    return behind if first >= behind else max(i for i in range(first) if isinstance(operations[i], Fork))


def _lay_patches(scaling: LatentScaling) -> Shrink:
    """FLUX.2's canvas holds patches of 2 x 2, row by row, each of their channels normalised on its own."""
    return Shrink(lambda latent: scaling.apply(F.pixel_unshuffle(latent, 2)))


def _list_to_mean(vae: AutoencoderKL | AutoencoderKLFlux2) -> EncoderOperations:
    encoder, channels = vae.encoder, vae.config["latent_channels"]
    yield Local(lambda image: encoder.conv_in(image.to(vae.dtype)), reach=1)
    for block in encoder.down_blocks:
        yield from without_channels(list_level(block))
        for downsampler in require_each(Downsample2D, block.downsamplers):
            yield Shrink(downsampler)
    yield from without_channels(list_middle(encoder.mid_block))
    yield Normalize(require(nn.GroupNorm, encoder.conv_norm_out))
    yield Local(lambda value: encoder.conv_out(encoder.conv_act(value)), reach=1)
    if vae.quant_conv is not None:
        yield from without_channels([list_convolution(vae.quant_conv)])
    yield Local(lambda moments: moments[:, :channels])


def _list_tiny(vae: AutoencoderTiny) -> EncoderOperations:
    """No statistics anywhere: every layer is local or a convolution with a stride."""
    yield Local(lambda image: image.to(vae.dtype).add(1).div(2))
    for layer in vae.encoder.layers:
        if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1:
            yield Shrink(layer, layer.stride[0])
        else:
            convolutions = [part for part in layer.modules() if isinstance(part, nn.Conv2d)]
            yield Local(layer, sum(part.kernel_size[0] // 2 for part in convolutions))
