"""A network made faster without other results: its repeated blocks compiled, its weights channels last."""

import logging
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch._dynamo.config
import torch.fx.experimental._config
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from api_schemas.model_files import UPSCALER
from worker.engine.plan import StagePlan
from worker.engine.start import Upscale

# Residual blocks are no "repeated blocks" to diffusers, but half of a UNet's time.
_ALWAYS = frozenset(["ResnetBlock2D"])
_DAMAGED_CACHE = "the compiler's cache (TORCHINDUCTOR_CACHE_DIR) is damaged: what cannot be read is compiled again; deleting it ends this"
_MAX_VARIANTS = 64  # blocks of one class but of other widths count against one limit, which is 8 by default


def find_denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """The network that predicts: a UNet or a transformer."""
    return pipe.components.get("unet") or pipe.components["transformer"]


def find_denoisers(pipe: DiffusionPipeline) -> list[nn.Module]:
    """With that of a cascade's later stages, if the pipeline has one."""
    upscaler = pipe.components.get(UPSCALER)
    return [find_denoiser(pipe), *([] if upscaler is None else [upscaler])]


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compile the repeated blocks in place, at the first call, once for all batches.

    Residual blocks are left as they are for a batch of 1, which is other code to the compiler: that would be half of
    what a worker's start has to compile, for one tile alone.

    In place of diffusers' own `compile_repeated_blocks`, which leaves out residual blocks (17 of the 87 blocks of
    SDXL's UNet, and half of its time), raises an error for networks that name no blocks (Stable Diffusion 3's,
    PixArt's, Sana's), and compiles again for each size of a batch.

    All blocks of a class are one piece of code to the compiler: left to itself it takes their widths and
    heights for dynamic, and does without the optimisations that need known sizes.

    Returns:
        the number of blocks.
    """
    logging.getLogger("torch._inductor.codecache").addFilter(_cache_faults)
    torch._dynamo.config.recompile_limit = _MAX_VARIANTS
    # Else a batch of 1 is other code in blocks without convolutions, too.
    torch.fx.experimental._config.backed_size_oblivious = True  # pyright: ignore[reportPrivateUsage]  # as PyTorch's own exporter sets it
    repeated = _ALWAYS | set(getattr(network, "_repeated_blocks", ()) or ())
    blocks = [part for part in network.modules() if type(part).__name__ in repeated]
    for block in blocks:
        block.compile(backend=backend, dynamic=False)  # pyright: ignore[reportUnknownMemberType]  # untyped options
        # There is no public place between a module's call and its compiled code.
        call = cast(Callable[..., object], block._compiled_call_impl)  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        block._compiled_call_impl = _with_free_batch(block, call)  # pyright: ignore[reportPrivateUsage]
    return len(blocks)


class _CacheFaults(logging.Filter):
    """One line in place of a traceback for each file of the compiler's cache that cannot be read."""

    _told = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "unable to load compiled graph" not in record.getMessage():
            return True
        told, self._told = self._told, True
        record.msg, record.args, record.exc_info = _DAMAGED_CACHE, (), None
        return not told


_cache_faults = _CacheFaults()


class CompiledShapes:
    """Shapes of tiles, and of what they attend to, for which the blocks of each network have been compiled.

    Args:
        all_known: nothing is compiled, so no shape is new.
    """

    def __init__(self, *, all_known: bool) -> None:
        self._all_known, self._known = all_known, set[_Variant]()

    def add(self, stage: StagePlan) -> None:
        self._known.add(_name_variant(stage))

    def find_new(self, stages: Iterable[StagePlan]) -> list[tuple[tuple[int, int], bool]]:
        """Shapes of tiles, (height, width), and whether they attend to more than themselves."""
        new = {_name_variant(stage) for stage in stages} - self._known
        return [] if self._all_known else sorted({(shape, any(conductor)) for shape, conductor, _ in new})


_Variant = tuple[tuple[int, int], tuple[int, int], bool]


def _name_variant(stage: StagePlan) -> _Variant:
    """The shape of its tiles and of the conductor, (0, 0) if there is none, and which of two networks is given them."""
    attention = stage.denoise.attention_at(0, 1)
    conductor = attention.conductor if attention else (0, 0)
    return stage.denoise.tile_shape, conductor, isinstance(stage.start, Upscale)


def _with_free_batch(block: nn.Module, call: Callable[..., object]) -> Callable[..., object]:
    def call_with_free_batch(*arguments: object, **options: object) -> object:
        tensors = [
            each for each in (*arguments, *options.values()) if isinstance(each, Tensor) and each.dim() > 1
        ]
        if type(block).__name__ in _ALWAYS and any(len(each) == 1 for each in tensors):
            return block.forward(*arguments, **options)
        for each in tensors:
            torch._dynamo.maybe_mark_dynamic(each, 0)
        return call(*arguments, **options)

    return call_with_free_batch


def put_parts_channels_last(pipe: DiffusionPipeline, *, denoiser: bool) -> None:
    """Lay out the autoencoder, and the denoiser if asked, unless its weights have five axes, as Qwen-Image's."""
    for part in (*(find_denoisers(pipe) if denoiser else ()), pipe.components.get("vae")):
        if isinstance(part, nn.Module) and all(weight.dim() < 5 for weight in part.parameters()):
            put_channels_last(part)


def put_channels_last(network: nn.Module) -> None:
    """Lay out a network's weights channels last, as convolutions on GPUs and CPUs read them without a conversion.

    diffusers' transformers inside of UNets convert their result back to channels first; that is left out.
    """
    nn.Module.to(network, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # documented, not typed
    for part in network.modules():
        if isinstance(part, Transformer2DModel) and part.use_linear_projection:
            part._get_output_for_continuous_inputs = _keep_layout(part)  # pyright: ignore[reportPrivateUsage]


def _keep_layout(part: Transformer2DModel) -> Callable[..., Tensor]:
    def project_out(
        hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        pixels = part.proj_out(hidden_states).unflatten(1, (height, width))
        return pixels.permute(0, 3, 1, 2) + residual

    return project_out
