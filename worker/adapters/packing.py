"""A canvas as FLUX.1's and Qwen-Image's transformers see it: one token for each patch of 2 x 2 latent pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 2  # latent pixels a side


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> tokens (B, H / 2 * W / 2, 4 C), as `_pack_latents` of diffusers' pipelines."""
    return F.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens back to (B, C, H, W), of latent pixels."""
    patches = tokens.transpose(1, 2).contiguous()
    return F.pixel_shuffle(torch.unflatten(patches, -1, (height // PATCH, width // PATCH)), PATCH)
