"""One forward of the SDXL-size UNet in several dresses, and where its time goes by kind of kernel.

    .venv/bin/python -m benchmarks.forward --batches 2 8 16
    .venv/bin/python -m benchmarks.forward --tiny    # does it run? on a CPU

A batch of 16 is eight tiles with guidance. Every dress is built anew and measured in turn.
"""

import argparse
import gc
import re
import time
from collections import Counter
from collections.abc import Callable

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from benchmarks.random_models import build_sdxl
from worker.adapters.compilation import compile_blocks

Forward = Callable[[int], Tensor]
REPEATS = 5
KINDS = {
    "matrix product": r"gemm|cutlass|nvjet|matmul|addmm",
    "attention": r"flash|fmha|attention|sdpa",
    "convolution": r"conv|cudnn|wgrad|implicit|xmma|winograd",
    "layout": r"nchw|nhwc|transpose|copy|cat",
    "normalisation, activation": r"norm|triton|elementwise|silu|gelu|reduce|vectorized",
}


def plain(unet: UNet2DConditionModel) -> None:
    """As diffusers loads it."""


def fused(unet: UNet2DConditionModel) -> None:
    """One product for queries, keys and values."""
    unet.fuse_qkv_projections()


def channels_last(unet: UNet2DConditionModel) -> None:
    unet.to(memory_format=torch.channels_last)


def compiled(unet: UNet2DConditionModel) -> None:
    """Blocks compiled one by one."""
    compile_blocks(unet)


def compiled_fused(unet: UNet2DConditionModel) -> None:
    fused(unet)
    compile_blocks(unet)


def compiled_channels_last(unet: UNet2DConditionModel) -> None:
    channels_last(unet)
    compile_blocks(unet)


def compiled_fused_channels_last(unet: UNet2DConditionModel) -> None:
    fused(unet)
    compiled_channels_last(unet)


DRESSES = (
    plain,
    fused,
    channels_last,
    compiled,
    compiled_fused,
    compiled_channels_last,
    compiled_fused_channels_last,
)


def main() -> None:
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{'dress':<30} ms a tile-forward at batch " + ", ".join(map(str, options.batches)), flush=True)
    for dress in DRESSES:
        if not options.only or dress.__name__ in options.only:
            try_on(dress, options, device)


def try_on(
    dress: Callable[[UNet2DConditionModel], None], options: argparse.Namespace, device: torch.device
) -> None:
    unet = build_sdxl(device, tiny=options.tiny).unet
    began = time.perf_counter()
    dress(unet)
    forward = prepare(unet, device)
    for batch in options.batches:
        forward(batch)
    settle(device)
    first_s = time.perf_counter() - began
    times = [1000 * measure(forward, batch, device) / batch for batch in options.batches]
    print(
        f"{dress.__name__:<30} "
        + "  ".join(f"{ms:7.2f}" for ms in times)
        + f"   first calls {first_s:.0f} s",
        flush=True,
    )
    if options.profile:
        print_profile(forward, options.batches[-1], device)
    del unet, forward
    gc.collect()
    torch.compiler.reset()


def prepare(unet: UNet2DConditionModel, device: torch.device) -> Forward:
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    timestep = torch.tensor(500.0, device=device)

    @torch.inference_mode()
    def forward(batch: int) -> Tensor:
        draw = torch.ones(batch, 1, dtype=unet.dtype, device=device)
        added = {"text_embeds": draw.expand(-1, 1280), "time_ids": draw.expand(-1, 6)}
        latent, states = (
            draw.view(-1, 1, 1, 1).expand(-1, 4, side, side).contiguous(),
            draw[..., None].expand(-1, 77, width),
        )
        if unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
            latent = latent.contiguous(memory_format=torch.channels_last)
        return unet(latent, timestep, states, added_cond_kwargs=added, return_dict=False)[0]

    return forward


def measure(forward: Forward, batch: int, device: torch.device) -> float:
    """Seconds of one call, the mean of a few."""
    settle(device)
    began = time.perf_counter()
    for _ in range(REPEATS):
        forward(batch)
    settle(device)
    return (time.perf_counter() - began) / REPEATS


def print_profile(forward: Forward, batch: int, device: torch.device) -> None:
    """Milliseconds by kind of kernel."""
    with torch.profiler.profile() as profile:
        forward(batch)
        settle(device)
    spent: Counter[str] = Counter()
    for event in profile.events():
        if device.type == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA:
            spent[classify(event.name)] += event.self_device_time_total or event.self_cpu_time_total
    for kind, microseconds in spent.most_common():
        print(f"    {kind:<28} {microseconds / 1000 / batch:7.2f} ms a tile", flush=True)


def classify(kernel: str) -> str:
    lowered = kernel.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lowered)), "other")


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--only", nargs="+", choices=[dress.__name__ for dress in DRESSES])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
