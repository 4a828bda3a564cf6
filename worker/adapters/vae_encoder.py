"""diffusers' encoders, written out as the engine's list of operations."""

# As in vae.py: diffusers types the parts of its autoencoders as bare modules or optionals.
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import nn

from worker.adapters.latent_scaling import LatentScaling
from worker.adapters.vae import walk_level, walk_middle, widened
from worker.adapters.vae_dc import walk_dc_encoder
from worker.adapters.vae_qwen_image import walk_qwen_image_encoder
from worker.adapters.vae_walk import EncoderWalk, walk_convolution, without_channels
from worker.engine.decoder import Attend, Fork, Local, Normalize, Operation
from worker.engine.encoder import Encoder, Shrink


def flatten_encoder(vae: object, scaling: LatentScaling) -> Encoder | None:
    """List the operations from a picture to its latent's mean, scaled as the canvas holds it.

    Returns:
        None for an autoencoder of another class: latents of such a model are enlarged themselves.
    """
    match vae:
        case AutoencoderKL():
            operations = [*_walk_to_mean(vae), Local(scaling.apply)]
        case AutoencoderKLFlux2():
            operations = [*_walk_to_mean(vae), _lay_patches(scaling)]
        case AutoencoderKLQwenImage():
            operations = [*walk_qwen_image_encoder(vae), Local(scaling.apply)]
        case AutoencoderDC():
            operations = [*walk_dc_encoder(vae), Local(scaling.apply)]
        case AutoencoderTiny():
            operations = [*_walk_tiny(vae), Local(scaling.apply)]
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


def _walk_to_mean(vae: AutoencoderKL | AutoencoderKLFlux2) -> EncoderWalk:
    encoder, channels = vae.encoder, vae.config.latent_channels
    yield Local(lambda image: encoder.conv_in(image.to(vae.dtype)), reach=1)
    for block in encoder.down_blocks:
        yield from without_channels(walk_level(block))
        for downsampler in block.downsamplers or []:
            yield Shrink(downsampler)
    yield from without_channels(walk_middle(encoder.mid_block))
    yield Normalize(encoder.conv_norm_out)
    yield Local(lambda value: encoder.conv_out(encoder.conv_act(value)), reach=1)
    if vae.quant_conv is not None:
        yield from without_channels([walk_convolution(vae.quant_conv)])
    yield Local(lambda moments: moments[:, :channels])


def _walk_tiny(vae: AutoencoderTiny) -> EncoderWalk:
    """No statistics anywhere: every layer is local or a convolution with a stride."""
    yield Local(lambda image: image.to(vae.dtype).add(1).div(2))
    for layer in vae.encoder.layers:
        if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1:
            yield Shrink(layer, layer.stride[0])
        else:
            convolutions = [part for part in layer.modules() if isinstance(part, nn.Conv2d)]
            yield Local(layer, sum(part.kernel_size[0] // 2 for part in convolutions))
