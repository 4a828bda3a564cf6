"""Speed and memory of models of true size (random weights, bfloat16) on a GPU, one line a measure.

    .venv/bin/python -m benchmarks.gpu
    .venv/bin/python -m benchmarks.gpu --only ceiling loop panorama
    .venv/bin/python -m benchmarks.gpu --only loop decode cascade --ranks 2 --modules 8
    .venv/bin/python -m benchmarks.gpu --only flux-loop    # what flux would take, from a few steps
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
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from api_schemas.generation import ResolvedRequest
from benchmarks.panorama import time_panorama
from benchmarks.random_models import build_flux, build_sdxl, wrap_flux, wrap_sdxl
from worker.adapters.compilation import compile_blocks, find_denoiser
from worker.adapters.family import FamilyModel
from worker.adapters.graphs import replay_forward
from worker.adapters.model import Conditions
from worker.adapters.vae_attention import attend_in_blocks
from worker.engine.decode import decode
from worker.engine.decoder import Attend, Decoder, Local, Operation
from worker.engine.denoise import Step, TilePredicted
from worker.engine.generate import Progress, StageBegan, generate
from worker.engine.plan import DecodeMode, DecodePlan, GenerationPlan
from worker.engine.ranks import Ranks
from worker.engine.stitch import Band, stitch
from worker.engine.sync import Alone, Group
from worker.image_file import ImageFile
from worker.planner import plan_generation
from worker.pyramid import Press

Layout = Literal["flat", "cascade"]
GIB = 2**30
TILE_TFLOP = 6.76  # of SDXL's UNet for one 1024 px tile, one branch


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
        self.decode_bytes = int(options.decode_gib * GIB)
        self.ceiling: float | None = None
        self.weights_gib = torch.cuda.memory_allocated() / GIB if device.type == "cuda" else 0.0
        if options.attention == "cudnn":
            torch.backends.cuda.enable_flash_sdp(False)
        if options.graphs:
            replay_forward(find_denoiser(pipe))
        count = compile_blocks(find_denoiser(pipe)) if options.compile else 0
        with self.gauge() as gauge:
            self.rehearse()
        self.say("rehearsal", f"{count} blocks compiled, {gauge.seconds:.0f} s, once at a worker's start")

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
        """One step of the largest batch, for which it is compiled, then of a single tile; a small decode."""
        for side_px in (4096, 1024):
            progress = self.sing(side_px, layout="flat", steps=2)
            next(event for event in progress if isinstance(event, Step))
            progress.close()
        self.decode(1024, "exact")

    def decode(self, side_px: int, mode: DecodeMode, decoder: Decoder | None = None) -> None:
        card = self.model.card
        side = self.size(side_px) // card.vae_scale
        latent = torch.randn(card.latent_channels, side, side, device=self.device)
        decoder = decoder or self.model.prepare(Conditions("")).decoder
        with tempfile.TemporaryDirectory() as folder:
            held_bytes = self.decode_bytes if mode == "exact" else self.decode_bytes // 4
            plan = DecodePlan(mode=mode, memory_bytes=held_bytes, spill_dir=folder)
            for _ in stitch(decode(latent, decoder, (False, False), plan, self.group), self.size(side_px)):
                pass

    def sing(
        self, side_px: int, *, layout: Layout, steps: int, folder: Path | None = None
    ) -> Iterator[Progress]:
        request = self.ask(side_px, layout=layout, steps=steps)
        conditions = Conditions(request.prompt, guidance_scale=request.guidance_scale)
        plan = self.plan(request, folder or Path(tempfile.gettempdir()))
        return generate(plan, self.model.prepare(conditions), group=self.group)

    def plan(self, request: ResolvedRequest, folder: Path) -> GenerationPlan:
        return plan_generation(request, self.model.card, self.decode_bytes, folder)

    def ask(self, side_px: int, *, layout: Layout, steps: int) -> ResolvedRequest:
        side_px = max(self.size(side_px), 256)
        return ResolvedRequest.model_validate(
            {
                "model": self.model.card.name,
                "width_px": side_px,
                "height_px": side_px,
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
    bench.ceiling = 20 * 2 * side**3 / gauge.seconds / 1e12
    bench.say("matmul ceiling", f"{bench.ceiling:.0f} TFLOP/s")


def measure_loop(bench: Bench) -> None:
    """A step at 4096²: crops, predictions, guidance, fusion, scheduler."""
    tile_s = time_loop(bench, steps=10)
    if bench.ceiling is not None:
        bench.say("", f"{TILE_TFLOP / tile_s / bench.ceiling:.0%} of the ceiling, if this is SDXL")


def measure_flat_loop(bench: Bench) -> None:
    """A few steps, and what all 28 would take."""
    tile_s, steps = time_loop(bench, steps=4), 28
    plan = bench.plan(bench.ask(4096, layout="flat", steps=steps), Path("."))
    tiles = sum(plan.canvas.count_tiles(steps))
    bench.say(
        "", f"{steps} steps of a flat 4096² are {tiles} tiles: {tiles * tile_s:.0f} s, decode not counted"
    )


def time_loop(bench: Bench, steps: int) -> float:
    """Seconds a tile-forward, the median of all steps but the first."""
    times: list[tuple[float, int]] = []
    with bench.gauge() as whole:
        began = time.perf_counter()
        for event in bench.sing(4096, layout="flat", steps=steps):
            if isinstance(event, Step):
                bench._settle()
                times.append((time.perf_counter() - began, event.tiles))
                if len(times) == steps:
                    break
                began = time.perf_counter()
    branches = 2 if bench.model.card.negative_prompt else 1
    tile_s = statistics.median(seconds / tiles / branches for seconds, tiles in times[1:])
    bench.say(
        "tile forward in the loop",
        f"{1000 * tile_s:.2f} ms; steps {' '.join(f'{seconds:.2f}' for seconds, _ in times)} s; "
        f"tiles {'/'.join(str(tiles) for _, tiles in times)}; peak {whole.peak_gib:.1f} GiB",
    )
    return tile_s


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
    with bench.gauge() as gauge:
        bench.decode(side_px, mode)
    bench.say(
        f"decode {side_px}² {mode}",
        f"{gauge.seconds:.2f} s; peak {gauge.peak_gib:.1f} GiB, of it weights {bench.weights_gib:.1f}",
    )


def measure_decode_parts(bench: Bench) -> None:
    """Where the exact decode of 8192² spends its time on the device; the rest is normalisation, sums, moving."""
    spans: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {"attention": [], "convolutions": []}

    def timed(name: str, ask: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def ask_timed(*values: Tensor) -> Tensor:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            answer = ask(*values)
            last.record()
            spans[name].append((first, last))
            return answer

        return ask_timed if bench.device.type == "cuda" else ask

    def watch(operation: Operation) -> Operation:
        match operation:
            case Attend():
                return replace(operation, apply=timed("attention", operation.apply))
            case Local() if operation.reach:
                return replace(operation, apply=timed("convolutions", operation.apply))
            case _:
                return operation

    decoder = bench.model.prepare(Conditions("")).decoder
    with bench.gauge() as gauge:
        bench.decode(8192, "exact", replace(decoder, operations=[watch(each) for each in decoder.operations]))
    parts = {name: sum(a.elapsed_time(b) for a, b in each) / 1000 for name, each in spans.items()}
    parts["the rest"] = gauge.seconds - sum(parts.values())
    bench.say("its parts at 8192²", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()))


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
        bench.say(
            f"decoder attention {name}",
            f"{gauge.seconds:.3f} s an eighth, {tflop / gauge.seconds:.0f} TFLOP/s; "
            f"peak {gauge.peak_gib - bench.weights_gib:.1f} GiB; mean {answer.float().abs().mean():.6f}",
        )


def _attend_in(rows: int, columns: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend_in_blocks(query[0, 0], key[0, 0], value[0, 0], rows, columns)[None, None]


def measure_cascade(bench: Bench) -> None:
    """Twice: at first kernels are chosen for shapes that the rehearsal has not seen."""
    for _ in range(2):
        measure_picture(bench, 4096, "cascade", 30)


def measure_huge_cascade(bench: Bench) -> None:
    measure_picture(bench, 8192, "cascade", 30)


def measure_flat(bench: Bench) -> None:
    measure_picture(bench, 4096, "flat", 28)


def measure_picture(bench: Bench, side_px: int, layout: Layout, steps: int) -> None:
    """End to end: stages, each with its way up from the one before; exact decode, rows on disk; PNG."""
    size, marks = bench.size(side_px), list[float]()
    with tempfile.TemporaryDirectory() as name, bench.gauge() as gauge:
        folder, digest, last_step = Path(name), hashlib.sha256(), 0.0
        with ImageFile(folder / "image.tif", size, size) as image:
            for event in bench.sing(side_px, layout=layout, steps=steps, folder=folder):
                if isinstance(event, StageBegan):
                    marks.append(time.perf_counter())
                elif isinstance(event, Step):
                    last_step = time.perf_counter()
                elif isinstance(event, Band):
                    digest.update(event.rows.numpy())
                    image.write(event.top, event.rows.numpy())
        marks += [last_step, time.perf_counter()]
        Press(folder / "image.tif").write_picture(folder / "image.png", "png", None)
        marks.append(time.perf_counter())
    spans = " ".join(f"{after - before:.1f}" for before, after in pairwise(marks))
    bench.say(
        f"{side_px}² {layout}",
        f"{gauge.seconds:.1f} s (stages, decode, PNG: {spans}); peak {gauge.peak_gib:.1f} GiB; "
        f"sha256 {digest.hexdigest()[:12]}",
    )


SDXL: dict[str, Callable[[Bench], None]] = {
    "ceiling": measure_ceiling,
    "attention": measure_attention,
    "loop": measure_loop,
    "preview": measure_first_preview,
    "cascade": measure_cascade,
    "panorama": measure_panorama,
    "decode": measure_decode,
    "decode-parts": measure_decode_parts,
    "cascade-8192": measure_huge_cascade,
}
FLUX: dict[str, Callable[[Bench], None]] = {"flux-loop": measure_flat_loop, "flux": measure_flat}


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
                try_to(measure, bench)
            del pipe, bench
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def try_to(measure: Callable[[Bench], None], bench: Bench) -> None:
    """One measure that fails must not take the others' time; ranks would wait for each other."""
    try:
        measure(bench)
    except Exception:
        if bench.group.size > 1:
            raise
        bench.say(measure.__name__, traceback.format_exc(limit=-4))


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
    parser.add_argument("--decode-gib", type=float, default=9, help="what decoding holds; bounded: a quarter")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
