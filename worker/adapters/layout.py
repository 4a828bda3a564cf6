"""In which order a network's numbers lie in memory."""

# diffusers' parts are typed loosely.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from worker.adapters.compilation import find_denoiser


def put_parts_channels_last(pipe: DiffusionPipeline, *, denoiser: bool) -> None:
    """The autoencoder, and perhaps the denoiser, unless they think in films (Qwen-Image's): those have five axes."""
    for part in (find_denoiser(pipe) if denoiser else None, pipe.components.get("vae")):
        if isinstance(part, nn.Module) and all(weight.dim() < 5 for weight in part.parameters()):
            put_channels_last(part)


def put_channels_last(network: nn.Module) -> None:
    """As convolutions want it, a GPU's and a CPU's: they then turn nothing round, before or after.

    diffusers' transformers inside of UNets turn their result back to channels first; that is left out.
    """
    nn.Module.to(network, memory_format=torch.channels_last)
    for part in network.modules():
        if isinstance(part, Transformer2DModel) and part.use_linear_projection:
            part._get_output_for_continuous_inputs = _keep_layout(part)


def _keep_layout(part: Transformer2DModel) -> Callable[..., Tensor]:
    def give_back(
        hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        pixels = part.proj_out(hidden_states).unflatten(1, (height, width))
        return pixels.permute(0, 3, 1, 2) + residual

    return give_back
