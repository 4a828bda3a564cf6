"""Measurements of the decoder: whole pictures, the time of its parts, and its attention alone."""

from collections import deque
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.bench import Bench
from benchmarks.kernels import print_profile
from worker.adapters.acceleration import find_denoiser
from worker.adapters.autoencoders.layers import attend_in_blocks
from worker.adapters.model import Conditions
from worker.engine.canvas import Plane
from worker.engine.plan import DecodeMode, DecodePlan
from worker.engine.upscale import upscale_latent
from worker.engine.vae.operations import Attend, Local, Operation

Spans = list[tuple[torch.cuda.Event, torch.cuda.Event]]
MODES: tuple[DecodeMode, ...] = ("exact", "bounded")


def measure_decode(bench: Bench) -> None:
    for side_px, mode in product((4096, 8192), MODES):
        with bench.gauge() as gauge:
            bench.decode(side_px, mode)
        bench.report(
            f"decode {side_px}² {mode}",
            f"{gauge.seconds:.2f} s; peak {gauge.peak_gib:.1f} GiB, of it weights {bench.weights_gib:.1f}",
        )


def measure_decode_parts(bench: Bench) -> None:
    """Where the exact decode of 8192² spends its time on the device; the rest is normalisation, sums, moving."""
    spans: dict[str, Spans] = {"attention": [], "convolutions": []}
    decoder = bench.model.prepare(Conditions("")).decoder
    if bench.device.type == "cuda":
        decoder = replace(decoder, operations=[_time(each, spans) for each in decoder.operations])
    with bench.gauge() as gauge:
        bench.decode(8192, "exact", decoder)
    parts = {name: sum(a.elapsed_time(b) for a, b in each) / 1000 for name, each in spans.items()}
    parts["the rest"] = gauge.seconds - sum(parts.values())
    bench.report(
        "its parts at 8192²", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
    )


def profile_decode(bench: Bench) -> None:
    """The exact decode of 4096² by kernel; milliseconds of all of it."""
    print_profile(lambda: bench.decode(4096, "exact"), bench.device, 1)


def profile_way_up(bench: Bench) -> None:
    """From the latent of 2048² to that of 4096², by kernel; milliseconds of all of it."""
    prepared, side = bench.model.prepare(Conditions("")), bench.size(4096) // bench.model.card.vae_scale
    latent = torch.randn(bench.model.card.latent_channels, side // 2, side // 2, device=bench.device)
    plan = DecodePlan(memory_bytes=bench.decode_bytes)

    def run() -> None:
        deque(upscale_latent(latent, Plane(side, side), prepared, plan, bench.group), maxlen=0)

    print_profile(run, bench.device, 1)


def _time(operation: Operation, spans: dict[str, Spans]) -> Operation:
    """The same, but the device notes when it begins and ends, if it is one of the dear ones."""
    match operation:
        case Attend():
            name = "attention"
        case Local() if operation.reach:
            name = "convolutions"
        case _:
            return operation

    def apply(*values: Tensor) -> Tensor:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        answer = operation.apply(*values)
        last.record()
        spans[name].append((first, last))
        return answer

    return replace(operation, apply=apply)


def measure_attention(bench: Bench) -> None:
    """One strip of the decoder's attention at 4096²: an eighth of all queries, all keys."""
    keys = bench.size(512) ** 2
    shape = (1, 1, keys, 512)
    dtype = next(find_denoiser(bench.pipe).parameters()).dtype
    key = torch.randn(shape, device=bench.device, dtype=dtype)
    query = key[:, :, : keys // 8]
    in_blocks = {
        f"{rows} x {columns}": partial(_attend_in, rows, columns)
        for rows, columns in ((8192, 16384), (4096, 8192), (4096, 4096), (2048, 16384))
    }
    for name, ask in {**in_blocks, "PyTorch's": nn.functional.scaled_dot_product_attention}.items():
        ask(query[:, :, :16], key, key)
        with bench.gauge() as gauge:
            answer = ask(query, key, key)
        tflop = 4 * keys * len(query[0, 0]) * 512 / 1e12
        bench.report(
            f"decoder attention {name}",
            f"{gauge.seconds:.3f} s an eighth, {tflop / gauge.seconds:.0f} TFLOP/s; "
            f"peak {gauge.peak_gib - bench.weights_gib:.1f} GiB; mean {answer.float().abs().mean():.6f}",
        )


def _attend_in(rows: int, columns: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend_in_blocks(query[0, 0], key[0, 0], value[0, 0], rows, columns)[None, None]
