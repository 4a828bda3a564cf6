"""How large latents are, for the denoiser that has to learn them."""

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn


@torch.no_grad()
def scale_latents(model: AutoencoderTiny, batch: Tensor) -> None:
    """Give the latents of this batch (B, 3, H, W) unit deviation, by the scaling factor, and no channel too little."""
    raise_faint_channels(model, model.encoder(batch).float())
    latent = model.encoder(batch).float()
    model.register_to_config(scaling_factor=round(1 / latent.std().item(), 4))
    means = ", ".join(f"{value:.2f}" for value in latent.mean(dim=(0, 2, 3)).tolist())
    spreads = ", ".join(f"{value:.2f}" for value in latent.std(dim=(0, 2, 3)).tolist())
    print(f"latent scaling {model.config.scaling_factor}; means {means}; deviations {spreads}")


@torch.no_grad()
def raise_faint_channels(model: AutoencoderTiny, latent: Tensor, least: float = 0.75) -> None:
    """Give faint channels of the latent (B, C, h, w) that deviation, and take it back where the decoder begins.

    A sampler's last step starts from a noise of about 0.2, and what is much fainter than that comes out
    blurred. The decoder bends its input (3 tanh(z / 3)), hence a little more than before: 0.17 dB, which
    training the decoder alone brings back.
    """
    factor = (least / latent.std(dim=(0, 2, 3))).clamp(min=1)
    last = [layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)][-1]
    first = next(layer for layer in model.decoder.layers if isinstance(layer, nn.Conv2d))
    last.weight.mul_(factor.view(-1, 1, 1, 1))
    last.bias.mul_(factor)
    first.weight.div_(factor.view(1, -1, 1, 1))
