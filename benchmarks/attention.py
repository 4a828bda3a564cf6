"""What a step costs when tiles attend to the conductor, and to their neighbourhoods: SDXL-size, random weights.

    .venv/bin/python -m benchmarks.attention
    .venv/bin/python -m benchmarks.attention --plain    # neither compiled nor recorded as CUDA graphs
    .venv/bin/python -m benchmarks.attention --tiny     # does it run? on a CPU

Every kind makes the same steps of a flat canvas, once to compile and record, once to be measured. `peak` is the most
memory that the process had allocated on the device, weights included.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch

from api_schemas.advanced import Attention
from api_schemas.folder_settings import FolderSettings
from api_schemas.generation import ResolvedRequest
from benchmarks.kernels import pool_moments
from benchmarks.random_models import build_sdxl, wrap_sdxl
from worker.adapters.family_model import FamilyModel
from worker.adapters.model import Conditions
from worker.engine.denoise import Step
from worker.engine.generate import generate
from worker.planner import plan_generation

GIB = 2**30


def main() -> None:
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = not (options.plain or options.tiny)
    pipe = build_sdxl(device, tiny=options.tiny)
    model = wrap_sdxl(pipe, FolderSettings(compile=fast, graphs=fast))
    side_px = 384 if options.tiny else options.side_px
    print(f"torch {torch.__version__}; {side_px}² flat, batches of {2 * options.modules}, guidance on")
    alone_s = None
    for kind in options.kinds:
        began = time.perf_counter()
        time_steps(model, kind, side_px, options)
        first_s = time.perf_counter() - began
        times, tiles, peak_gib = time_steps(model, kind, side_px, options)
        step_s = statistics.fmean(times)
        alone_s = alone_s or step_s
        print(
            f"{kind:<22} a step {step_s:.3f} s ({step_s / alone_s - 1:+.1%}); tiles {'/'.join(map(str, tiles))}; "
            f"{1000 * sum(times) / sum(tiles) / 2:.2f} ms a tile-forward; peak {peak_gib:.1f} GiB; first {first_s:.0f} s",
            flush=True,
        )


def time_steps(
    model: FamilyModel, kind: Attention, side_px: int, options: argparse.Namespace
) -> tuple[list[float], list[int], float]:
    """Seconds and tiles of each step but the first, and the peak memory in GiB."""
    request = ask(model, kind, side_px, options)
    conditions = Conditions("", guidance_scale=request.guidance_scale, attention=kind)
    plan = plan_generation(request, model.card, GIB, Path(tempfile.gettempdir()))
    prepared, times, tiles = model.prepare(conditions), list[float](), list[int]()
    if prepared.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for event in generate(plan, prepared):
        if not isinstance(event, Step):
            continue
        pool_moments(prepared.device)
        times.append(time.perf_counter() - began)
        tiles.append(event.tiles)
        if len(times) == options.steps:
            break
        began = time.perf_counter()
    peak = torch.cuda.max_memory_allocated() / GIB if prepared.device.type == "cuda" else 0.0
    return times[1:], tiles[1:], peak


def ask(model: FamilyModel, kind: Attention, side_px: int, options: argparse.Namespace) -> ResolvedRequest:
    advanced = {"num_modules": options.modules, "attention": kind}
    if options.tiny:
        advanced["tile_size_px"] = 128
    return ResolvedRequest.model_validate(
        {
            "model": model.card.name,
            "width_px": side_px,
            "height_px": side_px,
            # All that are measured are shared ones, and few are outer ones.
            "steps": 4 * options.steps,
            "guidance_scale": model.card.default_guidance_scale,
            "seed": 7,
            "layout": "flat",
            "advanced": advanced,
        }
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(get_args(Attention)), choices=get_args(Attention))
    parser.add_argument("--side-px", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--modules", type=int, default=8, help="tiles of a batch; each has two branches")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
