"""A network made faster without other results: its repeated blocks compiled, its weights channels last."""

from collections.abc import Callable

import torch

# diffusers' parts are typed loosely.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

# Residual blocks are no "repeated blocks" to diffusers, but half of a UNet's time.
_ALWAYS = frozenset(["ResnetBlock2D"])
_MAX_VARIANTS = 64  # blocks of one class but of other widths count against one limit, which is 8 by default


def find_denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """The network that a step asks."""
    return pipe.components.get("unet") or pipe.components["transformer"]


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compile in place, at the first call; one compilation holds for every size of batch but 1.

    All blocks of a class are one piece of code to the compiler: left to itself it takes their widths and
    heights for things that vary, and gives up what it can only do with known sizes.

    Returns:
        the number of blocks.
    """
    torch._dynamo.config.recompile_limit = _MAX_VARIANTS
    repeated = _ALWAYS | set(getattr(network, "_repeated_blocks", ()) or ())
    blocks = [part for part in network.modules() if type(part).__name__ in repeated]
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
        if (call := block._compiled_call_impl) is not None:
            block._compiled_call_impl = _with_free_batch(call)
    return len(blocks)


def _with_free_batch(call: Callable[..., object]) -> Callable[..., object]:
    def call_with_free_batch(*arguments: object, **options: object) -> object:
        for each in (*arguments, *options.values()):
            if isinstance(each, Tensor) and each.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(each, 0)
        return call(*arguments, **options)

    return call_with_free_batch


def put_parts_channels_last(pipe: DiffusionPipeline, *, denoiser: bool) -> None:
    """The autoencoder, and perhaps the denoiser, unless they are made for video, as Qwen-Image's: those weights have five axes."""
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
