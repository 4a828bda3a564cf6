"""Speed and memory of models of true size (random weights, bfloat16) on a GPU, one line a measure.

    .venv/bin/python -m benchmarks.gpu
    .venv/bin/python -m benchmarks.gpu --only ceiling loop panorama
    .venv/bin/python -m benchmarks.gpu --only loop decode cascade --ranks 2 --modules 8
    .venv/bin/python -m benchmarks.gpu --tiny    # does it run? on a CPU, with tiny models

`peak` is what the process had allocated on the device at most during a measure, weights included.
With `--modules` all batches have one size, and a picture's digest is the same for any number of ranks;
without it they are shared out evenly, as a worker does it.
"""

import argparse
import gc
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from api_schemas.generation import ResolvedRequest
from benchmarks.panorama import time_panorama
from benchmarks.random_models import build_flux, build_sdxl, wrap_flux, wrap_sdxl
from worker.adapters.compilation import compile_blocks, find_denoiser
from worker.adapters.family import FamilyModel
from worker.adapters.model import Conditions
from worker.engine.decode import decode
from worker.engine.denoise import Step, TilePredicted
from worker.engine.generate import Progress, generate
from worker.engine.plan import DecodeMode, DecodePlan
from worker.engine.ranks import Ranks
from worker.engine.stitch import Band
from worker.engine.sync import Alone, Group
from worker.image_file import ImageFile
from worker.planner import plan_generation
from worker.pyramid import Press

Layout = Literal["flat", "cascade"]
GIB = 2**30
DECODE_MEMORY_BYTES = 6 * GIB


@dataclass(slots=True)
class Gauge:
    """What a measure took."""

    seconds: float = 0.0
    peak_gib: float = 0.0


class Bench:
    """One model on one device."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        model: FamilyModel,
        device: torch.device,
        group: Group,
        options: argparse.Namespace,
    ) -> None:
        self.pipe, self.model = pipe, model
        self.device, self.group, self.modules = device, group, options.modules
        self._shrink = 16 if options.tiny else 1
        if options.compile:
            count = compile_blocks(find_denoiser(pipe))
            with self.gauge() as gauge:
                self.rehearse()
            self.say("compile", f"{count} blocks in {gauge.seconds:.0f} s, once at a worker's start")
        else:
            self.rehearse()

    def say(self, name: str, value: str) -> None:
        """One voice is enough."""
        if self.group.rank == 0:
            print(f"{name:<28} {value}", flush=True)

    def size(self, side_px: int) -> int:
        return side_px // self._shrink

    @contextmanager
    def gauge(self) -> Iterator[Gauge]:
        """Seconds until the device is idle again."""
        gauge = Gauge()
        self._settle()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        yield gauge
        self._settle()
        gauge.seconds = time.perf_counter() - began
        if self.device.type == "cuda":
            gauge.peak_gib = torch.cuda.max_memory_allocated() / GIB

    def rehearse(self) -> None:
        """One step of the shape that all measures have."""
        progress = self.sing(4096, layout="flat", steps=2)
        next(event for event in progress if isinstance(event, Step))
        progress.close()

    def sing(
        self, side_px: int, *, layout: Layout, steps: int, folder: Path | None = None
    ) -> Iterator[Progress]:
        request = self.ask(side_px, layout=layout, steps=steps)
        conditions = Conditions(request.prompt, guidance_scale=request.guidance_scale)
        plan = plan_generation(request, self.model.card, DECODE_MEMORY_BYTES, folder or Path("."))
        return generate(plan, self.model.prepare(conditions), group=self.group)

    def ask(self, side_px: int, *, layout: Layout, steps: int) -> ResolvedRequest:
        return ResolvedRequest.model_validate(
            {
                "model": self.model.card.name,
                "width_px": self.size(side_px),
                "height_px": self.size(side_px),
                "steps": steps,
                "guidance_scale": self.model.card.default_guidance_scale,
                "seed": 7,
                "layout": layout,
                "advanced": {"num_modules": self.modules},
            }
        )

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure_ceiling(bench: Bench) -> None:
    """8192³ in bfloat16."""
    side = bench.size(8192)
    factor = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    for _ in range(3):
        torch.mm(factor, factor)
    with bench.gauge() as gauge:
        for _ in range(20):
            torch.mm(factor, factor)
    bench.say("matmul ceiling", f"{20 * 2 * side**3 / gauge.seconds / 1e12:.0f} TFLOP/s")


def measure_loop(bench: Bench) -> None:
    """A step at 4096²: crops, predictions, guidance, fusion, scheduler."""
    times: list[tuple[float, int]] = []
    with bench.gauge() as whole:
        began = time.perf_counter()
        for event in bench.sing(4096, layout="flat", steps=10):
            if isinstance(event, Step):
                bench._settle()
                times.append((time.perf_counter() - began, event.tiles))
                began = time.perf_counter()
            if isinstance(event, Band):
                break
    branches = 2 if bench.model.card.negative_prompt else 1
    tile_s = statistics.median(seconds / tiles / branches for seconds, tiles in times[1:])
    seconds = sum(seconds for seconds, _ in times) / len(times)
    tiles = "/".join(str(tiles) for _, tiles in times)
    bench.say(
        "tile forward in the loop",
        f"{1000 * tile_s:.2f} ms; a step {seconds:.2f} s; tiles {tiles}; peak {whole.peak_gib:.1f} GiB",
    )


def measure_panorama(bench: Bench) -> None:
    seconds = time_panorama(bench.pipe, bench.size(4096), steps=2)
    bench.say("diffusers' panorama", f"a step {seconds:.2f} s")


def measure_first_preview(bench: Bench) -> None:
    """From a job's start, prompt already encoded, to the first tile's clean estimate on the host."""
    with bench.gauge() as gauge:
        events = bench.sing(4096, layout="cascade", steps=30)
        next(event for event in events if isinstance(event, TilePredicted)).clean.cpu()
    bench.say("first preview after", f"{gauge.seconds:.2f} s")


def measure_decode(bench: Bench) -> None:
    for side_px in (4096, 8192):
        for mode in ("exact", "bounded"):
            _measure_decode(bench, side_px, mode)


def _measure_decode(bench: Bench, side_px: int, mode: DecodeMode) -> None:
    card = bench.model.card
    side = bench.size(side_px) // card.vae_scale
    latent = torch.randn(card.latent_channels, side, side, device=bench.device)
    decoder = bench.model.prepare(Conditions("")).decoder
    with bench.gauge() as gauge, tempfile.TemporaryDirectory() as folder:
        plan = DecodePlan(mode=mode, memory_bytes=DECODE_MEMORY_BYTES, spill_dir=folder)
        for _ in decode(latent, decoder, (False, False), plan, bench.group):
            pass
    bench.say(f"decode {side_px}² {mode}", f"{gauge.seconds:.2f} s; peak {gauge.peak_gib:.1f} GiB")


def measure_pictures(bench: Bench) -> None:
    for side_px in (4096, 8192):
        measure_picture(bench, side_px, "cascade", 30)


def measure_flat(bench: Bench) -> None:
    measure_picture(bench, 4096, "flat", 28)


def measure_picture(bench: Bench, side_px: int, layout: Layout, steps: int) -> None:
    """End to end: stages, exact decode, rows on disk, PNG."""
    size = bench.size(side_px)
    with tempfile.TemporaryDirectory() as name, bench.gauge() as gauge:
        folder, digest = Path(name), hashlib.sha256()
        with ImageFile(folder / "image.tif", size, size) as image:
            for event in bench.sing(side_px, layout=layout, steps=steps, folder=folder):
                if isinstance(event, Band):
                    digest.update(event.rows.numpy())
                    image.write(event.top, event.rows.numpy())
        rows = time.perf_counter()
        Press(folder / "image.tif").write_picture(folder / "image.png", "png", None)
        png_s = time.perf_counter() - rows
    bench.say(
        f"{side_px}² {layout}",
        f"{gauge.seconds:.1f} s, of it {png_s:.1f} s PNG; peak {gauge.peak_gib:.1f} GiB; sha256 {digest.hexdigest()[:12]}",
    )


SDXL: dict[str, Callable[[Bench], None]] = {
    "ceiling": measure_ceiling,
    "loop": measure_loop,
    "panorama": measure_panorama,
    "preview": measure_first_preview,
    "decode": measure_decode,
    "cascade": measure_pictures,
}
FLUX: dict[str, Callable[[Bench], None]] = {"flux": measure_flat}


def main() -> None:
    options = parse()
    if options.ranks == 1:
        measure_all(0, options, "")
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(measure_all, (options, f"{folder}/store"), nprocs=options.ranks)


def measure_all(rank: int, options: argparse.Namespace, meeting_point: str) -> None:
    device = torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    group = Ranks(rank, options.ranks, device, Path(meeting_point)) if meeting_point else Alone()
    for build, wrap, measures in ((build_sdxl, wrap_sdxl, SDXL), (build_flux, wrap_flux, FLUX)):
        chosen = [measure for name, measure in measures.items() if name in options.only]
        if chosen:
            pipe = build(device, tiny=options.tiny)
            bench = Bench(pipe, wrap(pipe), device, group, options)
            name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
            bench.say(bench.model.card.name, f"{group.size} x {name}")
            for measure in chosen:
                measure(bench)
            del pipe, bench
            gc.collect()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*SDXL, *FLUX]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--modules", type=int, help="tiles in every batch of a rank")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
