"""Speed and memory of models of true size (random weights, bfloat16) on a GPU, one line per measurement.

    .venv/bin/python -m benchmarks.gpu
    .venv/bin/python -m benchmarks.gpu --only ceiling loop panorama
    .venv/bin/python -m benchmarks.gpu --only loop decode cascade --ranks 2 --modules 8
    .venv/bin/python -m benchmarks.gpu --only flux-loop    # what flux would take, from a few steps
    .venv/bin/python -m benchmarks.gpu --only few-2048 few-4096 few-8192 flux-few --graphs
    .venv/bin/python -m benchmarks.gpu --tiny    # does it run? on a CPU, with tiny models

`peak` is the most memory that the process had allocated on the device during a measurement, weights included.
With `--modules` all batches have one size, and a picture's digest is the same for any number of ranks;
without it tiles are divided evenly between ranks, as in a worker.
"""

import argparse
import gc
import hashlib
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch.multiprocessing.spawn import spawn  # pyright: ignore[reportUnknownVariableType]

from api_schemas.folder_settings import FolderSettings
from benchmarks.bench import Bench, Layout, Spans
from benchmarks.decoding import (
    measure_attention,
    measure_decode,
    measure_decode_parts,
    profile_decode,
    profile_way_up,
)
from benchmarks.kernels import print_profile
from benchmarks.panorama import time_panorama
from benchmarks.random_models import build_flux, build_sdxl, wrap_flux, wrap_sdxl
from benchmarks.timed_group import GatherCost, TimedGroup
from worker.adapters.family_model import FamilyModel
from worker.adapters.float8 import multiply_in_float8
from worker.engine.denoise import Step, TilePredicted
from worker.engine.generate import StageBegan
from worker.engine.ranks import ProcessGroup, SingleRank
from worker.engine.stitch import Band
from worker.picture_writer import PictureWriter
from worker.process.files import ImageFile

TILE_TFLOP = 6.76  # of SDXL's UNet for one 1024 px tile, one branch
GUIDED = [0.17, 0.9]  # about the noise levels that Kynkäänniemi et al. (2024) give for SDXL


def measure_ceiling(bench: Bench) -> None:
    """8192³ in bfloat16."""
    side = bench.size(8192)
    factor = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    for _ in range(3):
        torch.mm(factor, factor)
    with bench.gauge() as gauge:
        for _ in range(20):
            torch.mm(factor, factor)
    bench.ceiling = 20 * 2 * side**3 / gauge.seconds / 1e12
    bench.report("matmul ceiling", f"{bench.ceiling:.0f} TFLOP/s")


def measure_loop(bench: Bench) -> None:
    """A step at 4096²: crops, predictions, guidance, fusion, scheduler."""
    tile_s = time_loop(bench, steps=10)
    if bench.ceiling is not None:
        bench.report("", f"{TILE_TFLOP / tile_s / bench.ceiling:.0%} of the ceiling, if this is SDXL")


def profile_loop(bench: Bench) -> None:
    """One step at 4096², between the outer ones."""
    steps = 3
    plan = bench.plan(bench.ask(4096, layout="flat", steps=steps), Path("."))
    tiles = plan.stages[-1].denoise.count_tiles(steps)[1]
    events = bench.generate(4096, layout="flat", steps=steps)

    def run_step() -> None:
        next(event for event in events if isinstance(event, Step))

    run_step()
    print_profile(run_step, bench.device, tiles * count_branches(bench))


def count_branches(bench: Bench) -> int:
    return 2 if bench.model.card.negative_prompt else 1


def measure_flat_loop(bench: Bench) -> None:
    """A few steps, and what all 28 would take."""
    tile_s, steps = time_loop(bench, steps=4), 28
    plan = bench.plan(bench.ask(4096, layout="flat", steps=steps), Path("."))
    tiles = sum(plan.stages[-1].denoise.count_tiles(steps))
    bench.report(
        "", f"{steps} steps of a flat 4096² are {tiles} tiles: {tiles * tile_s:.0f} s, decode not counted"
    )


def time_loop(bench: Bench, steps: int) -> float:
    """Seconds a tile-forward, the median of all steps but the first."""
    times: list[tuple[float, int]] = []
    with bench.gauge() as whole:
        began = time.perf_counter()
        for event in bench.generate(4096, layout="flat", steps=steps):
            if isinstance(event, Step):
                bench.pool_moments()
                times.append((time.perf_counter() - began, event.tiles))
                if len(times) == steps:
                    break
                began = time.perf_counter()
    tile_s = statistics.median(seconds / tiles / count_branches(bench) for seconds, tiles in times[1:])
    bench.report(
        "tile forward in the loop",
        f"{1000 * tile_s:.2f} ms; steps {' '.join(f'{seconds:.2f}' for seconds, _ in times)} s; "
        f"tiles {'/'.join(str(tiles) for _, tiles in times)}; peak {whole.peak_gib:.1f} GiB",
    )
    return tile_s


def measure_scaling(bench: Bench) -> None:
    """Flat steps: what ranks lose by gathering, and by places of batches that no tile fills."""
    for side_px in (4096, 8192):
        scale_loop(bench, side_px, steps=5)


def scale_loop(bench: Bench, side_px: int, steps: int) -> None:
    group = TimedGroup(bench.group, bench.device)
    times: list[tuple[float, int, GatherCost]] = []
    with bench.gauge() as whole:
        began = time.perf_counter()
        for event in bench.generate(side_px, layout="flat", steps=steps, group=group):
            if isinstance(event, Step):
                cost = group.take()
                times.append((time.perf_counter() - began, event.tiles, cost))
                if len(times) == steps:
                    break
                began = time.perf_counter()
    seconds, tiles, costs = zip(*times[1:], strict=True)  # the first also fills the caches
    gathering, places = sum(each.seconds for each in costs), sum(each.places for each in costs)
    bench.report(
        f"{side_px}² flat, a step",
        f"{sum(seconds) / len(seconds):.3f} s of {sum(tiles) / len(tiles):.1f} tiles; gathering "
        f"{gathering / sum(seconds):.1%}; places left empty {1 - sum(tiles) * count_branches(bench) / places:.1%}; "
        f"peak {whole.peak_gib:.1f} GiB",
    )


def measure_panorama(bench: Bench) -> None:
    """As it ships, and with our compiled blocks."""
    assert isinstance(bench.pipe, StableDiffusionXLPipeline)
    compiled = time_panorama(bench.pipe, bench.size(4096), steps=2)
    with torch.compiler.set_stance("force_eager"):
        shipped = time_panorama(bench.pipe, bench.size(4096), steps=2)
    bench.report("diffusers' panorama", f"a step {shipped:.2f} s; its blocks compiled {compiled:.2f} s")


def measure_first_preview(bench: Bench) -> None:
    """From a job's start, prompt already encoded, to the first tile's clean estimate on the host."""
    with bench.gauge() as gauge:
        events = bench.generate(4096, layout="cascade", steps=30)
        next(event for event in events if isinstance(event, TilePredicted)).clean.cpu()
    bench.report("first preview after", f"{gauge.seconds:.2f} s")


def measure_picture(bench: Bench, side_px: int, layout: Layout, steps: int, **asked: object) -> None:
    """End to end: stages, each after its way up from the one before; exact decode, rows on disk; PNG.

    Args:
        asked: as `Bench.ask` takes it.
    """
    size, spans, predictions = bench.size(side_px), Spans(bench), 0.0
    branches = 1 if asked.get("few") else count_branches(bench)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with bench.gauge() as gauge:
            with ImageFile(folder / "image.tif", size, size) as image:
                for event in bench.generate(side_px, layout=layout, steps=steps, folder=folder, asked=asked):
                    match event:
                        case StageBegan(level=level):
                            spans.begin("way up" if level > 1 else "start")
                        case TilePredicted():
                            spans.begin("steps")
                        case Step():
                            predictions += event.work * branches
                            if event.index + 1 == event.steps:
                                spans.begin("decode")
                        case Band():
                            image.write(event.top, event.rows.numpy())
                        case _:
                            pass
            spans.begin("PNG")
            PictureWriter(folder / "image.tif", dpi=300).write_picture(folder / "image.png", "png", None)
            spans.begin("")
        digest = hashlib.sha256((folder / "image.tif").read_bytes()[-3 * size**2 :])
    bench.report(
        f"{side_px}² {' '.join(['few-step' if asked.get('few') else layout, *_name(asked)])}",
        f"{gauge.seconds:.2f} s; {predictions:.0f} predictions; peak {spans.peak_gib:.1f} GiB; "
        f"sha256 {digest.hexdigest()[:12]}\n    {spans.describe()}",
    )


def _name(asked: dict[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in asked.items() if name != "few"]


SDXL: dict[str, Callable[[Bench], None]] = {
    "ceiling": measure_ceiling,
    "attention": measure_attention,
    "loop": measure_loop,
    "loop-profile": profile_loop,
    "scaling": measure_scaling,
    "preview": measure_first_preview,
    "cascade": partial(measure_picture, side_px=4096, layout="cascade", steps=30),
    "flat": partial(measure_picture, side_px=4096, layout="flat", steps=30),
    "cascade-interval": partial(
        measure_picture, side_px=4096, layout="cascade", steps=30, guidance_interval=GUIDED
    ),
    "few-2048": partial(measure_picture, side_px=2048, layout="cascade", steps=4, few=True),
    "few-4096": partial(measure_picture, side_px=4096, layout="cascade", steps=4, few=True),
    "few-8192": partial(measure_picture, side_px=8192, layout="cascade", steps=4, few=True),
    "bytes": partial(measure_picture, side_px=2048, layout="cascade", steps=20),
    "panorama": measure_panorama,
    "decode": measure_decode,
    "decode-parts": measure_decode_parts,
    "way-up-profile": profile_way_up,
    "decode-profile": profile_decode,
    "cascade-8192": partial(measure_picture, side_px=8192, layout="cascade", steps=30),
    "cascade-8192-interval": partial(
        measure_picture, side_px=8192, layout="cascade", steps=30, guidance_interval=GUIDED
    ),
}
FLUX: dict[str, Callable[[Bench], None]] = {
    "flux-loop": measure_flat_loop,
    "flux-scaling": measure_scaling,
    "flux": partial(measure_picture, side_px=4096, layout="flat", steps=28),
    "flux-cascade": partial(measure_picture, side_px=4096, layout="cascade", steps=28),
    "flux-few": partial(measure_picture, side_px=4096, layout="cascade", steps=4, few=True),
}


def main() -> None:
    options = parse()
    if options.ranks == 1:
        measure_all(0, options, "")
    else:
        with tempfile.TemporaryDirectory() as folder:
            spawn(measure_all, (options, f"{folder}/store"), nprocs=options.ranks)


def measure_all(rank: int, options: argparse.Namespace, meeting_point: str) -> None:
    device = torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    group = ProcessGroup(rank, options.ranks, device, Path(meeting_point)) if meeting_point else SingleRank()
    for load, measures in ((load_sdxl, SDXL), (load_flux, FLUX)):
        chosen = [name for name in measures if name in options.only]
        if chosen:
            pipe, model = load(device, options)
            bench = Bench(pipe, model, device, group, options)
            card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
            bench.report(bench.model.card.name, f"{group.size} x {card}")
            for name in chosen:
                attempt(name, measures[name], bench)
            del pipe, model, bench
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def load_sdxl(device: torch.device, options: argparse.Namespace) -> tuple[DiffusionPipeline, FamilyModel]:
    pipe = build_sdxl(device, tiny=options.tiny)
    return pipe, wrap_sdxl(pipe, FolderSettings(compile=options.compile, graphs=options.graphs))


def load_flux(device: torch.device, options: argparse.Namespace) -> tuple[DiffusionPipeline, FamilyModel]:
    pipe = build_flux(device, tiny=options.tiny)
    if options.float8:
        multiply_in_float8(pipe.transformer)
    return pipe, wrap_flux(pipe, FolderSettings(compile=options.compile, graphs=options.graphs))


def attempt(name: str, measure: Callable[[Bench], None], bench: Bench) -> None:
    """One measure that fails must not take the others' time; ranks would wait for each other."""
    try:
        measure(bench)
    except Exception:
        if bench.group.size > 1:
            raise
        bench.report(name, traceback.format_exc(limit=-4))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*SDXL, *FLUX]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--modules", type=int, help="tiles in every batch of a rank")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs")
    parser.add_argument("--attention", choices=["default", "cudnn"], default="default", help="the denoiser's")
    parser.add_argument("--graphs", action="store_true", help="play the denoiser's launches back")
    parser.add_argument("--float8", action="store_true", help="products of FLUX-size in eight bits")
    parser.add_argument("--decode-gib", type=float, default=9, help="what decoding holds; bounded: a quarter")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
