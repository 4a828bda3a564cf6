"""One forward of the SDXL-size UNet in several configurations, and its time by kind of kernel.

    .venv/bin/python -m benchmarks.forward --batches 8 16 --profile
    .venv/bin/python -m benchmarks.forward --variants plain channels_last+cudnn+compiled
    .venv/bin/python -m benchmarks.forward --tiny    # does it run? on a CPU

A batch of 16 is eight tiles with guidance. A variant is a list of parts joined by +, applied in that order;
each is built from scratch and measured in turn, the most promising first.
"""

import argparse
import gc
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch._inductor.config as inductor  # pyright: ignore[reportPrivateUsage]
import torch.nn.functional as F
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels import pool_moments, print_profile
from benchmarks.random_models import build_sdxl
from worker.adapters.acceleration import compile_blocks, put_channels_last
from worker.adapters.float8 import multiply_in_float8
from worker.adapters.graphs import replay_forward

Forward = Callable[[int], Tensor]
Part = Callable[[UNet2DConditionModel], object]
REPEATS = 5
TILE_TFLOP = 6.76  # of one 1024 px tile, one branch


def channels_last_weights(unet: UNet2DConditionModel) -> None:
    """Only the weights: diffusers' transformers still turn pixels round."""
    nn.Module.to(unet, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # no overload has it


def smooth(unet: UNet2DConditionModel) -> None:
    """What surrounds the blocks and is no matrix product, compiled as well."""
    for part in unet.modules():
        if isinstance(part, Transformer2DModel):
            part.norm.compile(dynamic=False)  # pyright: ignore[reportUnknownMemberType]


PARTS: dict[str, Part] = {
    "plain": lambda unet: None,
    "fused": lambda unet: unet.fuse_qkv_projections(),
    "channels_last": put_channels_last,
    "channels_last_weights": channels_last_weights,
    "smooth": smooth,
    "float8": multiply_in_float8,
    "flash": lambda unet: torch.backends.cuda.enable_cudnn_sdp(False),
    "cudnn": lambda unet: torch.backends.cuda.enable_flash_sdp(False),
    "tuned": lambda unet: setattr(inductor, "coordinate_descent_tuning", True),
    "graphs": lambda unet: replay_forward(unet),
    "compiled": lambda unet: compile_blocks(unet),
}
VARIANTS = (
    "plain",
    "channels_last+compiled",
    "channels_last+float8+compiled",
    "channels_last+graphs+compiled",
    "channels_last+fused+compiled",
)


def main() -> None:
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = 512 if options.tiny else 8192
    ceiling = measure_ceiling(device, side)
    print(f"torch {torch.__version__}; matmul ceiling {ceiling:.0f} TFLOP/s at {side}³", flush=True)
    if device.type == "cuda":
        compare_attention(device)
    print("ms a tile-forward (share of the ceiling) at batch " + ", ".join(map(str, options.batches)))
    for variant in options.variants:
        try:
            measure_variant(variant, options, device, ceiling)
        except Exception:  # one that does not fit must not take the others' time
            print(f"{variant}: {traceback.format_exc(limit=-3)}", flush=True)
        take_off()


def measure_ceiling(device: torch.device, side: int) -> float:
    """TFLOP/s of a square product in bfloat16."""
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds = measure(lambda _: torch.mm(factor, factor), 1, device, repeats=20)
    return 2 * side**3 / seconds / 1e12


def compare_attention(device: torch.device) -> None:
    """SDXL's largest self-attention and the text's, batch 16, by each of PyTorch's kernels."""
    for keys in (4096, 77):
        for backend in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            name = "PyTorch's choice" if backend is None else backend.name
            try:
                seconds = time_attention(keys, backend, device)
                print(f"attention to {keys:>4} keys, {name:<18} {1000 * seconds:.3f} ms", flush=True)
            except RuntimeError as error:
                print(f"attention to {keys:>4} keys, {name:<18} {str(error)[:80]}", flush=True)


def time_attention(keys: int, backend: SDPBackend | None, device: torch.device) -> float:
    query, key = (
        torch.randn(16, length, 10, 64, device=device, dtype=torch.bfloat16).transpose(1, 2)
        for length in (4096, keys)
    )
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return measure(lambda _: F.scaled_dot_product_attention(query, key, key), 1, device, repeats=20)


def measure_variant(variant: str, options: argparse.Namespace, device: torch.device, ceiling: float) -> None:
    unet = build_sdxl(device, tiny=options.tiny).unet
    began = time.perf_counter()
    for name in variant.split("+"):
        PARTS[name](unet)
    forward = prepare(unet, device)
    for batch in sorted(options.batches, reverse=True):  # compiled for the largest
        forward(batch)
    pool_moments(device)
    first_s = time.perf_counter() - began
    times = [measure(forward, batch, device) / batch for batch in options.batches]
    cells = [f"{1000 * each:7.2f} ({TILE_TFLOP / each / ceiling:4.0%})" for each in times]
    print(f"{variant:<46} {' '.join(cells)}   first calls {first_s:.0f} s", flush=True)
    if options.profile:
        batch = options.batches[-1]
        print_profile(lambda: forward(batch), device, batch)


def take_off() -> None:
    """Undo the global settings of a variant before the next one."""
    gc.collect()
    torch.compiler.reset()
    inductor.coordinate_descent_tuning = False
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prepare(unet: UNet2DConditionModel, device: torch.device) -> Forward:
    side: int = unet.config["sample_size"]
    width: int = unet.config["cross_attention_dim"]
    timestep = torch.tensor(500.0, device=device)

    @torch.inference_mode()
    def forward(batch: int) -> Tensor:
        draw = torch.ones(batch, 1, dtype=unet.dtype, device=device)
        added = {"text_embeds": draw.expand(-1, 1280), "time_ids": draw.expand(-1, 6)}
        latent = draw.view(-1, 1, 1, 1).expand(-1, 4, side, side).contiguous()
        states = draw[..., None].expand(-1, 77, width).contiguous()
        return unet(latent, timestep, states, added_cond_kwargs=added, return_dict=False)[0]

    return forward


def measure(forward: Forward, batch: int, device: torch.device, repeats: int = REPEATS) -> float:
    """Seconds of one call, the mean of a few."""
    for _ in range(2):
        forward(batch)
    pool_moments(device)
    began = time.perf_counter()
    for _ in range(repeats):
        forward(batch)
    pool_moments(device)
    return (time.perf_counter() - began) / repeats


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
