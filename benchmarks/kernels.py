"""Device time by kind of kernel."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.autograd.profiler_util import FunctionEvent

K = TypeVar("K")
KINDS = {
    "attention": r"flash|fmha|attention|sdpa",
    "normalisation, activation": r"triton|norm|elementwise|silu|gelu|reduce|vectorized|softmax",
    "layout": r"nchw|nhwc.*(to|kernel)$|nchwtonhwc|nhwctonchw|transpose|copy|cat|memcpy",
    "convolution": r"conv|fprop|dgrad|wgrad|implicit|winograd|cudnn",
    "matrix product": r"gemm|cutlass|nvjet|matmul|addmm|cublas|xmma",
}


def print_profile(run: Callable[[], object], device: torch.device, tiles: int) -> None:
    """Milliseconds a tile by kind of kernel, the longest of each kind, and when none was at work."""
    kind_of_device = (
        torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    )
    with torch.profiler.profile(activities=[kind_of_device]) as profile:
        began = time.perf_counter()
        run()
        pool_moments(device)
        whole = 1e6 * (time.perf_counter() - began)
    spent, names = defaultdict[str, float](float), defaultdict[tuple[str, str], float](float)
    for event in cast(list[FunctionEvent], profile.events()):
        on_cpu = event.device_type == DeviceType.CPU
        microseconds = cast(
            float,
            event.self_cpu_time_total if on_cpu else event.self_device_time_total,  # pyright: ignore[reportUnknownMemberType]
        )
        if on_cpu is (device.type == "cpu"):
            kind = classify(event.name)
            spent[kind] += microseconds
            names[kind, event.name[:90]] += microseconds
    spent["nothing"] = max(whole - sum(spent.values()), 0)
    for kind, microseconds in _sort(spent):
        print(f"    {kind:<28} {microseconds / 1000 / tiles:7.2f} ms", flush=True)
        top = [(name, each) for (group, name), each in _sort(names) if group == kind][:3]
        for name, each in top:
            print(f"        {each / 1000 / tiles:7.2f} {name}", flush=True)


def _sort(spent: dict[K, float]) -> list[tuple[K, float]]:
    """The longest first."""
    return sorted(spent.items(), key=lambda item: item[1], reverse=True)


def classify(kernel: str) -> str:
    lowered = kernel.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lowered)), "other")


def pool_moments(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
